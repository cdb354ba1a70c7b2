{{/* What the values make of a Deployment or DaemonSet, which is changed in place. */}}
{{- define "iam4kube.workload" -}}
{{- $pod := .object.spec.template.spec -}}
{{- range concat $pod.containers ($pod.initContainers | default list) -}}
{{- if hasPrefix "registry.invalid/iam4kube/" .image -}}
{{- $_ := set . "image" (include "iam4kube.image" (dict "root" $.root "name" (base .image))) -}}
{{- end -}}
{{- end -}}
{{- $container := first $pod.containers -}}
{{- $name := trimPrefix "iam4kube-" .object.metadata.name -}}
{{- $values := get .root.Values $name | default dict -}}
{{- $arguments := concat ($container.args | default list) ($values.args | default list) -}}
{{- $_ := unset $container "args" -}}
{{- range $arguments -}}
{{- $argument := regexReplaceAllLiteral "^--init-image=.*$" . (printf "--init-image=%s" (include "iam4kube.image" (dict "root" $.root "name" "ip2service-init"))) -}}
{{- $_ := set $container "args" (append ($container.args | default list) $argument) -}}
{{- end -}}
{{- with $values.replicas -}}
{{- $_ := set $.object.spec "replicas" . -}}
{{- end -}}
{{- with $values.resources -}}
{{- $_ := set $container "resources" . -}}
{{- end -}}
{{- with $values.podAnnotations -}}
{{- $_ := set $.object.spec.template.metadata "annotations" (merge . ($.object.spec.template.metadata.annotations | default dict)) -}}
{{- end -}}
{{- with .root.Values.image.pullSecrets -}}
{{- $secrets := list -}}
{{- range . -}}
{{- $secrets = append $secrets (dict "name" .) -}}
{{- end -}}
{{- $_ := set $pod "imagePullSecrets" $secrets -}}
{{- end -}}
{{- if eq $name "server" -}}
{{- include "iam4kube.server" (dict "root" .root "kustomizations" .kustomizations "object" .object "pod" $pod "container" $container "values" $values) -}}
{{- end -}}
{{- end -}}

{{- define "iam4kube.server" -}}
{{- $annotations := .object.spec.template.metadata.annotations | default dict -}}
{{- $_ := set .object.spec.template.metadata "annotations" (merge (dict "checksum/config" (include "iam4kube.environment" . | sha256sum)) $annotations) -}}
{{- $_ := set .container "envFrom" (concat .container.envFrom .values.envFrom) -}}
{{- with .values.volumeMounts -}}
{{- $_ := set $.container "volumeMounts" (concat ($.container.volumeMounts | default list) .) -}}
{{- end -}}
{{- range $field := list "volumes" "initContainers" -}}
{{- with get $.values $field -}}
{{- $_ := set $.pod $field (concat (get $.pod $field | default list) .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
