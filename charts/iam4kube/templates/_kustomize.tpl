{{/*
The objects are those of manifests/, which is `files` here. Of its kustomizations this reads what they
have: resources, components, patches, and the server's environment. A test compares the whole with
what kustomize itself makes of them.
*/}}

{{/* A folder's kustomizations, what it is made of first, as a JSON list. */}}
{{- define "iam4kube.kustomizations" -}}
{{- $path := printf "files/%s/kustomization.yaml" .dir -}}
{{- $own := .root.Files.Get $path | required (printf "the chart has no %s" $path) | fromYaml -}}
{{- $all := list -}}
{{- range concat ($own.resources | default list) ($own.components | default list) -}}
{{- if not (hasSuffix ".yaml" .) -}}
{{- $all = include "iam4kube.kustomizations" (dict "root" $.root "dir" (clean (printf "%s/%s" $.dir .))) | fromJsonArray | concat $all -}}
{{- end -}}
{{- end -}}
{{- append $all (set $own "dir" .dir) | toJson -}}
{{- end -}}

{{/* The names of all components of the values, as a JSON list. */}}
{{- define "iam4kube.components" -}}
{{- $names := uniq .Values.components -}}
{{- if and .Values.injection.policy (not (has .Values.overlay (list "node-wide" "tokens-alone"))) -}}
{{- $names = append $names "injection-policy" -}}
{{- end -}}
{{- if and (or .Values.injection.policy (has "injection-policy" $names)) (or (has "token" $names) (eq .Values.overlay "tokens-alone")) -}}
{{- $names = append $names "token-policy" -}}
{{- end -}}
{{- uniq $names | toJson -}}
{{- end -}}

{{/* All kustomizations of the values, as a JSON list. */}}
{{- define "iam4kube.all" -}}
{{- $all := list -}}
{{- $dirs := list "namespace" .Values.overlay -}}
{{- $known := list -}}
{{- range $path, $_ := .Files.Glob "files/components/*/kustomization.yaml" -}}
{{- $known = append $known (base (dir $path)) -}}
{{- end -}}
{{- range without (include "iam4kube.components" . | fromJsonArray) .Values.overlay -}}
{{- if not (has . (without $known "images")) -}}
{{- fail (printf "components: there is no %q, there are %s" . (without $known "images" | join ", ")) -}}
{{- end -}}
{{- $dirs = append $dirs (printf "components/%s" .) -}}
{{- end -}}
{{- range $dirs -}}
{{- $all = include "iam4kube.kustomizations" (dict "root" $ "dir" .) | fromJsonArray | concat $all -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}

{{/* The objects of their files, as a JSON list. */}}
{{- define "iam4kube.objects" -}}
{{- $objects := list -}}
{{- range $k := .kustomizations -}}
{{- /* Of what has been uninstalled, a component patches the clean-up at most. */ -}}
{{- $gone := and (eq $.root.Values.overlay "uninstall") (hasPrefix "components/" $k.dir) -}}
{{- range $gone | ternary list ($k.resources | default list) -}}
{{- if hasSuffix ".yaml" . -}}
{{- range regexSplit "(?m)^---$" ($.root.Files.Get (printf "files/%s/%s" $k.dir .)) -1 -}}
{{- $objects = append $objects (fromYaml .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $objects -}}
{{- end -}}

{{/* Whether a target of a kustomization means an object. */}}
{{- define "iam4kube.targeted" -}}
{{- if and (eq (.target.kind | default .object.kind) .object.kind) (regexMatch (printf "^(%s)$" (.target.name | default ".*")) .object.metadata.name) -}}
true
{{- end -}}
{{- end -}}

{{/* Not empty if a patch deletes the object. */}}
{{- define "iam4kube.deleted" -}}
{{- range .kustomizations -}}
{{- range .patches | default list -}}
{{- if contains "$patch: delete" .patch -}}
{{- include "iam4kube.targeted" (dict "target" .target "object" $.object) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The server's environment: of base, of components, of the values. */}}
{{- define "iam4kube.environment" -}}
{{- $environment := dict -}}
{{- range .kustomizations -}}
{{- range .configMapGenerator | default list -}}
{{- if eq .name "iam4kube-server" -}}
{{- range .literals -}}
{{- $_ := set $environment (splitn "=" 2 .)._0 (splitn "=" 2 .)._1 -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := .root.Values.server.env -}}
{{- $_ := set $environment $name (toString $value) -}}
{{- end -}}
{{- toJson $environment -}}
{{- end -}}

{{/* The image of ours with this name. */}}
{{- define "iam4kube.image" -}}
{{- printf "%s/%s:%s" .root.Values.image.registry .name (.root.Values.image.tag | default .root.Chart.AppVersion) -}}
{{- with get .root.Values.image.digests .name -}}
@{{ . }}
{{- end -}}
{{- end -}}
