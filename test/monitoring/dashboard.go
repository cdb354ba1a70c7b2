package monitoring

import "encoding/json"

// Panel is a graph of the dashboard.
type Panel struct {
	Title string
	// Shows is what one sees in it, for people.
	Shows string
	// Unit is Grafana's name of it.
	Unit    string
	Queries []Query
}

// Query is a line of a graph, or one for each set of labels.
type Query struct{ Legend, Expr string }

// Row is panels with a heading.
type Row struct {
	Title  string
	Panels []Panel
}

// Dashboard is the table.
var Dashboard = []Row{
	{"Now", []Panel{
		{"Roles with credentials", "of the replica with the fewest, and how many roles are wanted", "short", []Query{
			{"valid", `min(sum by (namespace, pod) (iam4kube_roles{state=~"valid|valid-failing"}))`},
			{"wanted", `max(sum by (namespace, pod) (iam4kube_roles))`},
		}},
		{"First credentials to expire", "the time that is left of them: refreshes keep it above 20 minutes for sessions of an hour", "s", []Query{
			{"{{pod}}", `iam4kube_credentials_soonest_expiration_timestamp_seconds - time()`},
		}},
		{"Requests that wait", "by the piece that is missing", "short", []Query{{"{{missing}}", `sum by (missing) (iam4kube_waiting_requests)`}}},
		{"Programs", "by version", "short", []Query{{"{{version}}", `count by (version) (iam4kube_build_info)`}}},
	}},
	{"Requests", []Panel{
		{"Requests", "by endpoint", "reqps", []Query{{"{{endpoint}}", `sum by (endpoint) (rate(iam4kube_http_requests_total[$__rate_interval]))`}}},
		{"Statuses", "by HTTP status; 499: the client went away", "reqps", []Query{{"{{code}}", `sum by (code) (rate(iam4kube_http_requests_total[$__rate_interval]))`}}},
		{"Time to an answer", "of credentials, waiting included", "s", []Query{
			{"99 %", `histogram_quantile(0.99, sum by (le) (rate(iam4kube_http_request_duration_seconds_bucket{endpoint="credentials"}[$__rate_interval])))`},
			{"50 %", `histogram_quantile(0.5, sum by (le) (rate(iam4kube_http_request_duration_seconds_bucket{endpoint="credentials"}[$__rate_interval])))`},
		}},
		{"Ends of waits", "by what was missing first and how the wait ended", "reqps", []Query{{"{{missing}} {{outcome}}", `sum by (missing, outcome) (rate(iam4kube_wait_duration_seconds_count[$__rate_interval])) > 0`}}},
		{"IMDSv1 and IMDSv2", "requests without a session token and with one: `--imdsv1=false` is safe once there are none without", "reqps", []Query{{"{{version}}", `sum by (version) (rate(iam4kube_imds_requests_total[$__rate_interval]))`}}},
		{"Pods' tokens", "by what became of them", "reqps", []Query{{"{{outcome}}", `sum by (outcome) (rate(iam4kube_pod_tokens_total[$__rate_interval]))`}}},
	}},
	{"Credentials", []Panel{
		{"Roles by state", "of the replica that has most of each", "short", []Query{{"{{state}}", `max by (state) (iam4kube_roles)`}}},
		{"Attempts at STS", "by outcome, and what the limiter lets through", "ops", []Query{
			{"{{outcome}}", `sum by (outcome) (rate(iam4kube_sts_attempts_total[$__rate_interval]))`},
			{"limit", `sum(iam4kube_sts_rate_limit)`},
		}},
		{"Time of an attempt", "the 99th percentile", "s", []Query{{"99 %", `histogram_quantile(0.99, sum by (le) (rate(iam4kube_sts_attempt_duration_seconds_bucket[$__rate_interval])))`}}},
		{"Queue at the limiter", "roles that are due, by class, the most urgent first", "short", []Query{{"{{class}}", `max by (class) (iam4kube_sts_queue_length)`}}},
	}},
	{"What the server knows", []Panel{
		{"Pods", "in memory, of the replica with the fewest", "short", []Query{{"served: {{served}}", `min by (served) (iam4kube_pods)`}}},
		{"ServiceAccounts", "by what their annotations say", "short", []Query{{"{{role}}", `max by (role) (iam4kube_service_accounts)`}}},
		{"Silence of watches", "since the last word of each, of the replica that heard last of it longest ago: up to two minutes where nothing happens", "s", []Query{{"{{resource}}", `max by (resource) (time() - iam4kube_watch_last_event_timestamp_seconds)`}}},
		{"Not in order", "addresses that two pods claim, replicas that are cut off or stale", "short", []Query{
			{"two pods on an address", `max(iam4kube_ambiguous_addresses)`}, {"cut off", `sum(iam4kube_cut_off)`}, {"stale", `sum(iam4kube_stale)`},
		}},
		{"Events", "written to the API server, dropped, failed", "ops", []Query{{"{{outcome}}", `sum by (outcome) (rate(iam4kube_events_total[$__rate_interval]))`}}},
		{"Audit log", "records: written, left out, lost", "ops", []Query{{"{{outcome}}", `sum by (outcome) (rate(iam4kube_audit_records_total[$__rate_interval]))`}}},
	}},
	{"ip2service", []Panel{
		{"Endpoints", "by state, on the node with the fewest", "short", []Query{{"{{state}}", `min by (state) (iam4kube_endpoints)`}}},
		{"Connections led to servers", "of all nodes", "ops", []Query{{"{{family}}", `sum by (family) (rate(iam4kube_translated_connections_total[$__rate_interval]))`}}},
		{"Packets rejected", "by the guard, of all nodes", "pps", []Query{{"{{family}}", `sum by (family) (rate(iam4kube_guard_rejected_packets_total[$__rate_interval]))`}}},
		{"Rules", "transactions by outcome, and changes by others that were changed back", "ops", []Query{
			{"{{outcome}}", `sum by (outcome) (rate(iam4kube_ruleset_applies_total[$__rate_interval]))`},
			{"repaired", `sum(rate(iam4kube_ruleset_repairs_total[$__rate_interval]))`},
		}},
		{"Age of the last look at the rules", "of the node with the oldest", "s", []Query{{"age", `max(time() - iam4kube_ruleset_last_sync_timestamp_seconds)`}}},
		{"Nodes whose rules may be passed by", "by BPF host routing or Open vSwitch", "short", []Query{{"nodes", `sum(iam4kube_bpf_host_routing_suspected)`}}},
	}},
	{"Webhook", []Panel{
		{"Reviews", "by outcome and reason", "ops", []Query{{"{{webhook}} {{outcome}} {{reason}}", `sum by (webhook, outcome, reason) (rate(iam4kube_admissions_total[$__rate_interval]))`}}},
		{"Time of a review", "the 99th percentile", "s", []Query{{"99 %", `histogram_quantile(0.99, sum by (le) (rate(iam4kube_admission_duration_seconds_bucket[$__rate_interval])))`}}},
		{"Certificate", "the time that is left of it", "s", []Query{{"{{pod}}", `iam4kube_certificate_expiration_timestamp_seconds - time()`}}},
	}},
	{"Resources", []Panel{
		{"Memory", "resident", "bytes", []Query{{"{{pod}}", `process_resident_memory_bytes and on (job, instance) iam4kube_build_info`}}},
		{"Processors", "used", "short", []Query{{"{{pod}}", `rate(process_cpu_seconds_total[$__rate_interval]) and on (job, instance) iam4kube_build_info`}}},
		{"Connections", "open, by listener", "short", []Query{{"{{pod}} {{listener}}", `iam4kube_connections`}}},
		{"Connections reset", "because too many were open", "ops", []Query{{"{{pod}} {{listener}} {{reason}}", `rate(iam4kube_connections_refused_total[$__rate_interval])`}}},
	}},
}

// object is a JSON object.
type object = map[string]any

// dashboard is Grafana's JSON, https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
func dashboard() ([]byte, error) {
	const width, height, columns = 8, 8, 3
	source := object{"type": "prometheus", "uid": "${datasource}"}
	var panels []object
	id, y := 0, 0
	for _, row := range Dashboard {
		id++
		panels = append(panels, object{"id": id, "type": "row", "title": row.Title, "collapsed": false, "gridPos": object{"x": 0, "y": y, "w": 24, "h": 1}, "panels": []object{}})
		y++
		for i, p := range row.Panels {
			id++
			var targets []object
			for n, q := range p.Queries {
				targets = append(targets, object{"refId": string(rune('A' + n)), "expr": q.Expr, "legendFormat": q.Legend, "datasource": source})
			}
			panels = append(panels, object{
				"id": id, "type": "timeseries", "title": p.Title, "description": p.Shows, "datasource": source, "targets": targets,
				"gridPos":     object{"x": i % columns * width, "y": y + i/columns*height, "w": width, "h": height},
				"fieldConfig": object{"defaults": object{"unit": p.Unit, "min": 0}, "overrides": []object{}},
				"options":     object{"legend": object{"displayMode": "list", "placement": "bottom"}, "tooltip": object{"mode": "multi"}},
			})
		}
		y += (len(row.Panels) + columns - 1) / columns * height
	}
	return json.MarshalIndent(object{
		"uid": "iam4kube", "title": "iam4kube", "tags": []string{"iam4kube"}, "schemaVersion": 39, "version": 1, "editable": true,
		"time": object{"from": "now-6h", "to": "now"}, "refresh": "1m", "timezone": "browser",
		"templating": object{"list": []object{{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}}},
		"panels":     panels,
	}, "", "  ")
}
