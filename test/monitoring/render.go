package monitoring

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/test/checkout"
)

// notice begins each file that is made.
const notice = "# Made by `make monitoring` of test/monitoring: change it there.\n"

// Files are the files that are made, by their paths in the repository. Of pages, what is
// between two marks is made, and the rest is what is there.
func Files() (map[string][]byte, error) {
	rules, err := yaml.Marshal(groups())
	if err != nil {
		return nil, err
	}
	resource, err := yaml.Marshal(object{
		"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
		"metadata": object{"name": "iam4kube", "namespace": "iam4kube"}, "spec": groups(),
	})
	if err != nil {
		return nil, err
	}
	monitors, err := podMonitors()
	if err != nil {
		return nil, err
	}
	board, err := dashboard()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		"observability/rules.yaml":          append([]byte(notice), rules...),
		"observability/prometheusrule.yaml": append([]byte(notice), resource...),
		"observability/podmonitors.yaml":    append([]byte(notice), monitors...),
		"observability/dashboard.json":      append(board, '\n'),
	}
	for _, p := range []Program{Server, Webhook, IP2service} {
		if err := intoPage(files, p.page(), "alerts", alertTable(p)); err != nil {
			return nil, err
		}
	}
	return files, intoPage(files, Server.page(), "dashboard", panelTable())
}

// groups are the rules as Prometheus reads them: one group for each program.
func groups() object {
	var all []object
	for _, p := range []Program{Server, Webhook, IP2service} {
		var rules []object
		for _, a := range Alerts {
			if a.Program == p {
				rules = append(rules, object{
					"alert": a.Name, "expr": a.Expr, "for": a.For, "labels": object{"severity": a.Severity},
					"annotations": object{"summary": a.What, "description": plain(a.Do), "page": "docs/" + p.page() + "#alerts"},
				})
			}
		}
		all = append(all, object{"name": "iam4kube-" + string(p), "rules": rules})
	}
	return object{"groups": all}
}

// plain is Markdown as text: links are their words.
func plain(markdown string) string {
	for {
		before, rest, found := strings.Cut(markdown, "](")
		if !found {
			return strings.ReplaceAll(markdown, "`", "")
		}
		_, after, _ := strings.Cut(rest, ")")
		start := strings.LastIndexByte(before, '[')
		markdown = before[:start] + before[start+1:] + after
	}
}

// podMonitors are one for each program, because the job's name is that of the PodMonitor.
func podMonitors() ([]byte, error) {
	var all [][]byte
	for _, p := range []Program{Server, Webhook, IP2service} {
		name := "iam4kube-" + string(p)
		one, err := yaml.Marshal(object{
			"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor",
			"metadata": object{"name": name, "namespace": "iam4kube"},
			"spec": object{
				"selector": object{"matchLabels": object{"app.kubernetes.io/name": name}},
				// The operator adds a label endpoint, which would push the one of requests aside.
				"podMetricsEndpoints": []object{{"port": "metrics", "honorLabels": true}},
			},
		})
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return bytes.Join(all, []byte("---\n")), nil
}

// cell is what stands in a Markdown table.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

func alertTable(p Program) string {
	var table strings.Builder
	table.WriteString("| alert | what | expression | what to do |\n|---|---|---|---|\n")
	for _, a := range Alerts {
		if a.Program != p {
			continue
		}
		expr := "`" + cell(a.Expr) + "`"
		if a.For != "0m" {
			expr += " for " + a.For
		}
		fmt.Fprintf(&table, "| `%s`, %s | %s | %s | %s |\n", a.Name, a.Severity, a.What, expr, cell(strings.ReplaceAll(a.Do, "]("+p.page()+"#", "](#")))
	}
	return table.String()
}

func panelTable() string {
	var table strings.Builder
	table.WriteString("| row | panel | shows |\n|---|---|---|\n")
	for _, row := range Dashboard {
		for _, p := range row.Panels {
			fmt.Fprintf(&table, "| %s | %s | %s |\n", row.Title, p.Title, p.Shows)
		}
	}
	return table.String()
}

// intoPage puts what is made between the marks of a page.
func intoPage(files map[string][]byte, page, what, table string) error {
	path := "docs/" + page
	text, ok := files[path]
	if !ok {
		var err error
		if text, err = os.ReadFile(checkout.Path("docs", page)); err != nil {
			return err
		}
	}
	begin, end := "<!-- "+what+": made by `make monitoring` of test/monitoring -->\n", "<!-- end of "+what+" -->\n"
	before, rest, found := bytes.Cut(text, []byte(begin))
	_, after, ended := bytes.Cut(rest, []byte(end))
	if !found || !ended {
		return fmt.Errorf("%s has no marks %q and %q", path, begin, end)
	}
	files[path] = bytes.Join([][]byte{before, []byte(begin + "\n" + table + "\n" + end), after}, nil)
	return nil
}

// Write writes the files.
func Write() error {
	files, err := Files()
	if err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if err := os.WriteFile(checkout.Path(path), files[path], 0o644); err != nil {
			return err
		}
	}
	return nil
}
