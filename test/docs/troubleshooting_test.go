package docs

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/test/checkout"
)

const page = "troubleshooting.md"

// texts are all that users can be given.
func texts(t *testing.T) []string {
	t.Helper()
	all := Texts(t, "cmd", "internal")
	files, err := filepath.Glob(checkout.Path("manifests", "*", "*policy.yaml"))
	more, err2 := filepath.Glob(checkout.Path("manifests", "components", "*", "*policy.yaml"))
	if files = append(files, more...); err != nil || err2 != nil || len(files) < 3 {
		t.Fatal(files, err, err2)
	}
	for _, policy := range policies(t, files) {
		for _, v := range policy.Spec.Validations {
			message := v.Message
			if message == "" { // 'text' + expression
				message = strings.Split(v.MessageExpression, "'")[1] + Variable
			}
			all = append(all, strings.TrimSpace(message))
		}
	}
	return all
}

// policies are those of the files, which have other objects, too.
func policies(t *testing.T, files []string) (all []admissionv1.ValidatingAdmissionPolicy) {
	t.Helper()
	for _, file := range files {
		for document := range strings.SplitSeq(read(t, file), "\n---\n") {
			if !strings.Contains(document, "\nkind: ValidatingAdmissionPolicy\n") {
				continue
			}
			var policy admissionv1.ValidatingAdmissionPolicy
			if err := yaml.UnmarshalStrict([]byte(document), &policy); err != nil {
				t.Fatal(file, err)
			}
			all = append(all, policy)
		}
	}
	return all
}

// TestTroubleshootingHasEveryText: and none that is not given any more.
func TestTroubleshootingHasEveryText(t *testing.T) {
	var documented []string
	for _, section := range []string{
		"Answers and events", "Reasons inside answers", "The init container and ip2service", "The webhook",
		"Admission policies", "The server's start and readiness", "Flags",
	} {
		for text := range Rows(t, page, section) {
			documented = append(documented, text)
		}
	}
	given := texts(t)
	for _, text := range given {
		if !slices.Contains(documented, text) {
			t.Errorf("not in %s: %s", page, text)
		}
	}
	for _, text := range documented {
		if !slices.Contains(given, text) {
			t.Errorf("in %s, and nobody says it: %s", page, text)
		}
	}
	for reason := range Rows(t, "observability.md", "Events") {
		if !strings.Contains(Text(t, page), "`"+reason+"`") {
			t.Errorf("not in %s: event %s", page, reason)
		}
	}
}

// TestWrongSetUpsAreQuoted: what the table of wrong set-ups puts into iam4kube's mouth is one of
// its texts, with more of it filled in.
func TestWrongSetUpsAreQuoted(t *testing.T) {
	var patterns []*regexp.Regexp
	for _, text := range texts(t) {
		parts := strings.Split(text, Variable)
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		patterns = append(patterns, regexp.MustCompile("^(iam4kube: |ip2service: )?"+strings.Join(parts, ".*")+"$"))
	}
	_, section, _ := strings.Cut(Text(t, page), "\n## Wrong set-ups\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := 0
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| ") || len(cells) != 4 {
			continue
		}
		switch speaker := strings.TrimSpace(cells[2]); speaker {
		case "says", "Kubernetes", "the node":
		case "server", "init container", "webhook":
			rows++
			message := strings.Join(InBackquotes(cells[3]), "")
			matches := func(p *regexp.Regexp) bool { return p.MatchString(message) }
			if !slices.ContainsFunc(patterns, matches) {
				t.Errorf("%s says %s", speaker, message)
			}
		default:
			t.Errorf("who is %s?", speaker)
		}
	}
	if rows == 0 {
		t.Error("no rows")
	}
}
