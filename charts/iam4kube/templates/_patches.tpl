{{/* Applies the patches of all kustomizations to an object, in place. */}}
{{- define "iam4kube.patch" -}}
{{- range .kustomizations -}}
{{- range .patches | default list -}}
{{- if and (not (contains "$patch: delete" .patch)) (include "iam4kube.targeted" (dict "target" .target "object" $.object)) -}}
{{- /* fromYamlArray makes a list of an error's text where there is none. */ -}}
{{- $operations := fromYamlArray .patch -}}
{{- if kindIs "map" (first $operations) -}}
{{- range $operations -}}
{{- include "iam4kube.operation" (dict "object" $.object "operation" .) -}}
{{- end -}}
{{- else -}}
{{- $patch := fromYaml .patch -}}
{{- $metadata := omit ($patch.metadata | default dict) "name" "namespace" -}}
{{- include "iam4kube.merge" (dict "into" $.object "from" (omit $patch "apiVersion" "kind" "metadata")) -}}
{{- include "iam4kube.merge" (dict "into" $.object.metadata "from" $metadata) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* An operation of a JSON patch: add, replace or remove. */}}
{{- define "iam4kube.operation" -}}
{{- $operation := .operation -}}
{{- $keys := list -}}
{{- range splitList "/" (trimPrefix "/" $operation.path) -}}
{{- $keys = append $keys (. | replace "~1" "/" | replace "~0" "~") -}}
{{- end -}}
{{- $holder := dict -}}
{{- $in := "" -}}
{{- $node := .object -}}
{{- range initial $keys -}}
{{- $holder = $node -}}
{{- $in = . -}}
{{- if kindIs "map" $node -}}
{{- $node = get $node . -}}
{{- else -}}
{{- $node = index $node (atoi .) -}}
{{- end -}}
{{- end -}}
{{- $key := last $keys -}}
{{- if eq $operation.op "test" -}}
{{- /* kustomize does. */ -}}
{{- else if and (kindIs "map" $node) (eq $operation.op "remove") -}}
{{- $_ := unset $node $key -}}
{{- else if kindIs "map" $node -}}
{{- $_ := set $node $key $operation.value -}}
{{- else if eq $key "-" -}}
{{- $_ := set $holder $in (append $node $operation.value) -}}
{{- else -}}
{{- $at := atoi $key -}}
{{- $value := ternary list (list $operation.value) (eq $operation.op "remove") -}}
{{- $rest := slice $node (ternary $at (add1 $at | int) (eq $operation.op "add")) -}}
{{- $_ := set $holder $in (concat (slice $node 0 $at) $value $rest) -}}
{{- end -}}
{{- end -}}

{{/* A strategic merge patch: lists of these fields by a key, others as a whole. */}}
{{- define "iam4kube.merge" -}}
{{- $keys := dict "containers" "name" "initContainers" "name" "env" "name" "volumes" "name" "volumeMounts" "mountPath" "ports" "containerPort" -}}
{{- range $field, $value := .from -}}
{{- $have := get $.into $field -}}
{{- if and (kindIs "map" $value) (kindIs "map" $have) -}}
{{- include "iam4kube.merge" (dict "into" $have "from" $value) -}}
{{- else if and (kindIs "slice" $have) (hasKey $keys $field) -}}
{{- $key := get $keys $field -}}
{{- $new := list -}}
{{- range $item := $value -}}
{{- $merged := false -}}
{{- range $have -}}
{{- if eq (get . $key) (get $item $key) -}}
{{- $merged = true -}}
{{- include "iam4kube.merge" (dict "into" . "from" $item) -}}
{{- end -}}
{{- end -}}
{{- if not $merged -}}
{{- $new = append $new $item -}}
{{- end -}}
{{- end -}}
{{- $_ := set $.into $field (concat $new $have) -}}
{{- else -}}
{{- $_ := set $.into $field $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
