{{/* What the values and the components make of a Deployment or DaemonSet, which is changed in place. */}}
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
{{- $patched := include "iam4kube.arguments" (merge (dict "arguments" ($container.args | default list)) .) | fromJsonArray -}}
{{- $arguments := concat $patched ($values.args | default list) -}}
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
{{- if has $name (list "server" "webhook" "ip2service") -}}
{{- include (printf "iam4kube.%s" $name) (dict "root" .root "kustomizations" .kustomizations "object" .object "pod" $pod "container" $container "values" $values) -}}
{{- end -}}
{{- end -}}

{{- define "iam4kube.server" -}}
{{- include "iam4kube.nodes" . -}}
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

{{- define "iam4kube.webhook" -}}
{{- include "iam4kube.nodes" . -}}
{{- end -}}

{{- define "iam4kube.ip2service" -}}
{{- range .kustomizations -}}
{{- if eq .dir "components/no-dedicated-nodes" -}}
{{- $term := first $.pod.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms -}}
{{- $_ := set $term "matchExpressions" (rest $term.matchExpressions) -}}
{{- else if eq .dir "components/startup-taint" -}}
{{- $name := dict "name" "NODE_NAME" "valueFrom" (dict "fieldRef" (dict "fieldPath" "spec.nodeName")) -}}
{{- $_ := set $.container "env" (append ($.container.env | default list) $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Server and webhook on any node. */}}
{{- define "iam4kube.nodes" -}}
{{- range .kustomizations -}}
{{- if eq .dir "components/no-dedicated-nodes" -}}
{{- $_ := set $.pod "nodeSelector" (dict "kubernetes.io/os" "linux") -}}
{{- $_ := unset $.pod "tolerations" -}}
{{- end -}}
{{- end -}}
{{- end -}}
