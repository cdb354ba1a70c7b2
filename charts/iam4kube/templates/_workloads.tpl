{{/* What the values and the components make of a Deployment or DaemonSet, which is changed in place. */}}
{{- define "iam4kube.workload" -}}
{{- $pod := .object.spec.template.spec -}}
{{- range concat $pod.containers ($pod.initContainers | default list) -}}
{{- $_ := set . "image" (include "iam4kube.image" (dict "root" $.root "name" (base .image))) -}}
{{- end -}}
{{- $container := first $pod.containers -}}
{{- $values := get .root.Values (trimPrefix "iam4kube-" .object.metadata.name) | default dict -}}
{{- $arguments := concat $container.args (include "iam4kube.arguments" . | fromJsonArray) ($values.args | default list) -}}
{{- $_ := set $container "args" list -}}
{{- range $arguments -}}
{{- $argument := regexReplaceAllLiteral "^--init-image=.*$" . (printf "--init-image=%s" (include "iam4kube.image" (dict "root" $.root "name" "ip2service-init"))) -}}
{{- $_ := set $container "args" (append $container.args $argument) -}}
{{- end -}}
{{- with $values.replicas -}}
{{- $_ := set $.object.spec "replicas" . -}}
{{- end -}}
{{- with $values.resources -}}
{{- $_ := set $container "resources" . -}}
{{- end -}}
{{- with $values.podAnnotations -}}
{{- $_ := set $.object.spec.template.metadata "annotations" . -}}
{{- end -}}
{{- with .root.Values.image.pullSecrets -}}
{{- $secrets := list -}}
{{- range . -}}
{{- $secrets = append $secrets (dict "name" .) -}}
{{- end -}}
{{- $_ := set $pod "imagePullSecrets" $secrets -}}
{{- end -}}
{{- include (printf "iam4kube.%s" (trimPrefix "iam4kube-" .object.metadata.name)) (dict "root" .root "kustomizations" .kustomizations "object" .object "pod" $pod "container" $container "values" $values) -}}
{{- end -}}

{{- define "iam4kube.server" -}}
{{- include "iam4kube.nodes" . -}}
{{- $environment := include "iam4kube.environment" . -}}
{{- $_ := set .object.spec.template.metadata "annotations" (merge (dict "checksum/config" (sha256sum $environment)) .values.podAnnotations) -}}
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

{{/* In the overlay uninstall. */}}
{{- define "iam4kube.cleanup" -}}
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
