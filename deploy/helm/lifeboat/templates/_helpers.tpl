{{- define "lifeboat.labels" -}}
app.kubernetes.io/name: lifeboat
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "lifeboat.selector" -}}
app.kubernetes.io/name: lifeboat
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "lifeboat.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* What the queue's URL says, unless a value does; `eventbridge/` calls it `lifeboat-<cluster>`. */}}
{{- define "lifeboat.cluster" -}}
{{- $name := .Values.cluster | default (base .Values.queue | trimPrefix "lifeboat-") -}}
{{- if not (regexMatch "^[A-Za-z0-9._-]{1,63}$" $name) -}}
{{- fail (printf "the queue's name, %q, is no name of a cluster: up to 63 letters, digits, `-`, `.` and `_`. Set `cluster`" $name) -}}
{{- end -}}
{{- $name -}}
{{- end }}

{{- define "lifeboat.region" -}}
{{- $found := regexFind "sqs\\.[a-z0-9-]+\\.amazonaws" .Values.queue | trimPrefix "sqs." | trimSuffix ".amazonaws" -}}
{{- .Values.region | default $found | required "the queue's URL names no region. Set `region`" -}}
{{- end }}

{{- define "lifeboat.account" -}}
{{- .Values.account | default (regexFind "/[0-9]{12}/" .Values.queue | trimAll "/") -}}
{{- end }}

{{/* Mebibytes of a size as the configuration writes it. */}}
{{- define "lifeboat.mebibytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- if hasSuffix "TiB" . }}{{ mul $number 1048576 }}
{{- else if hasSuffix "GiB" . }}{{ mul $number 1024 }}
{{- else if hasSuffix "MiB" . }}{{ $number }}
{{- else }}{{ fail (printf "`%s` is no size in MiB, GiB or TiB" .) }}
{{- end }}
{{- end }}

{{/* Everything that the agent may hold at once: a save never meets the limit. */}}
{{- define "lifeboat.agentMemory" -}}
{{- $ring := dig "agent" "ringBudget" "1GiB" .Values.config | include "lifeboat.mebibytes" | int64 -}}
{{- $flight := dig "store" "inFlight" "256MiB" .Values.config | include "lifeboat.mebibytes" | int64 -}}
{{- $rest := include "lifeboat.mebibytes" .Values.agent.memoryOverhead | int64 -}}
{{ add $ring $flight $rest }}Mi
{{- end }}

{{/* What admin.listen, the probes and the monitors agree on. */}}
{{- define "lifeboat.port" -}}9808{{- end }}

{{/* What webhook.listen and the Service agree on. */}}
{{- define "lifeboat.webhookPort" -}}9843{{- end }}

{{/* Seconds of a duration as the configuration writes it. */}}
{{- define "lifeboat.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- if hasSuffix "ms" . }}{{ max 1 (div $number 1000) }}
{{- else if hasSuffix "h" . }}{{ mul $number 3600 }}
{{- else if hasSuffix "m" . }}{{ mul $number 60 }}
{{- else }}{{ $number }}
{{- end }}
{{- end }}

{{/* The configuration: what the chart decides, and the operator's own keys. */}}
{{- define "lifeboat.configuration" -}}
{{- $set := dict
  "cluster" (include "lifeboat.cluster" .)
  "region" (include "lifeboat.region" .)
  "namespace" .Release.Namespace
  "queue" (dict "url" .Values.queue)
  "store" (dict "bucket" .Values.bucket)
  "agent" (dict "hostRoot" "/host")
  "admin" (dict "listen" (printf "0.0.0.0:%s" (include "lifeboat.port" .)))
-}}
{{- with include "lifeboat.account" . }}{{ $_ := set $set "account" . }}{{ end }}
{{- if .Values.webhook.enabled }}
{{- $_ := set $set "webhook" (dict "listen" (printf "0.0.0.0:%s" (include "lifeboat.webhookPort" .))) }}
{{- end }}
{{- $all := mergeOverwrite (deepCopy .Values.config) $set }}
{{- range $key := keys $all | sortAlpha }}
{{- $value := get $all $key }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- range $part := keys $all | sortAlpha }}
{{- if kindIs "map" (get $all $part) }}
[{{ $part }}]
{{- range $key, $value := get $all $part }}
{{ $key }} = {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "lifeboat.probes" -}}
# Two minutes, as long as the notice: nobody starts it again while it saves with all its might.
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 12
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
{{- end }}

{{/* A plain manifest of `files/`, written for the namespace `lifeboat-system`. */}}
{{- define "lifeboat.plain" -}}
{{- $context := index . 0 -}}
{{ $context.Files.Get (index . 1) | replace "lifeboat-system" $context.Release.Namespace }}
{{- end }}
