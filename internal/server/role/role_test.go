package role

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestFromAnnotations(t *testing.T) {
	const good = "arn:aws:iam::123456789012:role/app"
	long := strings.Repeat("a", 64)
	longest := "arn:aws-" + strings.Repeat("g", 28) + ":iam::123456789012:role/" + strings.Repeat("p", 510) + "/" + long
	for _, tc := range []struct {
		name        string
		annotations map[string]string
		want        Role
		none        bool
		wrong       string // annotation named by the error
	}{
		{name: "no annotations", none: true},
		{name: "empty ARN counts as absent", annotations: map[string]string{AnnotationARN: ""}, none: true},
		{name: "only an external ID", annotations: map[string]string{AnnotationExternalID: "abc"}, none: true},
		{name: "plain", annotations: map[string]string{AnnotationARN: good}, want: Role{ARN: good, Duration: time.Hour}},
		{name: "China", annotations: map[string]string{AnnotationARN: "arn:aws-cn:iam::123456789012:role/app"}, want: Role{ARN: "arn:aws-cn:iam::123456789012:role/app", Duration: time.Hour}},
		{name: "GovCloud", annotations: map[string]string{AnnotationARN: "arn:aws-us-gov:iam::123456789012:role/app"}, want: Role{ARN: "arn:aws-us-gov:iam::123456789012:role/app", Duration: time.Hour}},
		{name: "isolated", annotations: map[string]string{AnnotationARN: "arn:aws-iso:iam::123456789012:role/app"}, want: Role{ARN: "arn:aws-iso:iam::123456789012:role/app", Duration: time.Hour}},
		{name: "isolated b", annotations: map[string]string{AnnotationARN: "arn:aws-iso-b:iam::123456789012:role/app"}, want: Role{ARN: "arn:aws-iso-b:iam::123456789012:role/app", Duration: time.Hour}},
		{name: "path", annotations: map[string]string{AnnotationARN: "arn:aws:iam::123456789012:role/a/b/c+=,.@-_"}, want: Role{ARN: "arn:aws:iam::123456789012:role/a/b/c+=,.@-_", Duration: time.Hour}},
		{name: "longest name", annotations: map[string]string{AnnotationARN: "arn:aws:iam::123456789012:role/" + long}, want: Role{ARN: "arn:aws:iam::123456789012:role/" + long, Duration: time.Hour}},
		{name: "longest ARN", annotations: map[string]string{AnnotationARN: longest}, want: Role{ARN: longest, Duration: time.Hour}},
		{name: "external ID and duration", annotations: map[string]string{AnnotationARN: good, AnnotationExternalID: "a:b/c=1", AnnotationDuration: "900"}, want: Role{ARN: good, ExternalID: "a:b/c=1", Duration: 15 * time.Minute}},
		{name: "empty external ID and duration count as absent", annotations: map[string]string{AnnotationARN: good, AnnotationExternalID: "", AnnotationDuration: ""}, want: Role{ARN: good, Duration: time.Hour}},
		{name: "longest duration", annotations: map[string]string{AnnotationARN: good, AnnotationDuration: "43200"}, want: Role{ARN: good, Duration: 12 * time.Hour}},

		{name: "role name alone", annotations: map[string]string{AnnotationARN: "app"}, wrong: AnnotationARN},
		{name: "unknown partition", annotations: map[string]string{AnnotationARN: "arn:gcp:iam::123456789012:role/app"}, wrong: AnnotationARN},
		{name: "partition prefix", annotations: map[string]string{AnnotationARN: "arn:awsx:iam::123456789012:role/app"}, wrong: AnnotationARN},
		{name: "partition's end missing", annotations: map[string]string{AnnotationARN: "arn:aws-:iam::123456789012:role/app"}, wrong: AnnotationARN},
		{name: "partition in capitals", annotations: map[string]string{AnnotationARN: "arn:aws-CN:iam::123456789012:role/app"}, wrong: AnnotationARN},
		{name: "partition too long", annotations: map[string]string{AnnotationARN: "arn:aws-" + strings.Repeat("g", 29) + ":iam::123456789012:role/app"}, wrong: AnnotationARN},
		{name: "short account", annotations: map[string]string{AnnotationARN: "arn:aws:iam::12345678901:role/app"}, wrong: AnnotationARN},
		{name: "a user", annotations: map[string]string{AnnotationARN: "arn:aws:iam::123456789012:user/app"}, wrong: AnnotationARN},
		{name: "with region", annotations: map[string]string{AnnotationARN: "arn:aws:iam:eu-west-1:123456789012:role/app"}, wrong: AnnotationARN},
		{name: "no name", annotations: map[string]string{AnnotationARN: "arn:aws:iam::123456789012:role/"}, wrong: AnnotationARN},
		{name: "empty path element", annotations: map[string]string{AnnotationARN: "arn:aws:iam::123456789012:role//app"}, wrong: AnnotationARN},
		{name: "name too long", annotations: map[string]string{AnnotationARN: "arn:aws:iam::123456789012:role/a" + long}, wrong: AnnotationARN},
		{name: "path too long", annotations: map[string]string{AnnotationARN: "arn:aws:iam::123456789012:role/" + strings.Repeat("p", 511) + "/app"}, wrong: AnnotationARN},
		{name: "as long as annotations can be", annotations: map[string]string{AnnotationARN: good + strings.Repeat("\x00", 256<<10)}, wrong: AnnotationARN},
		{name: "external ID as long as annotations can be", annotations: map[string]string{AnnotationARN: good, AnnotationExternalID: strings.Repeat("a", 256<<10)}, wrong: AnnotationExternalID},
		{name: "trailing newline", annotations: map[string]string{AnnotationARN: good + "\n"}, wrong: AnnotationARN},
		{name: "space in front", annotations: map[string]string{AnnotationARN: " " + good}, wrong: AnnotationARN},
		{name: "wildcard", annotations: map[string]string{AnnotationARN: "arn:aws:iam::123456789012:role/*"}, wrong: AnnotationARN},
		{name: "external ID too short", annotations: map[string]string{AnnotationARN: good, AnnotationExternalID: "a"}, wrong: AnnotationExternalID},
		{name: "external ID with a space", annotations: map[string]string{AnnotationARN: good, AnnotationExternalID: "a b"}, wrong: AnnotationExternalID},
		{name: "duration too short", annotations: map[string]string{AnnotationARN: good, AnnotationDuration: "899"}, wrong: AnnotationDuration},
		{name: "duration too long", annotations: map[string]string{AnnotationARN: good, AnnotationDuration: "43201"}, wrong: AnnotationDuration},
		{name: "duration with unit", annotations: map[string]string{AnnotationARN: good, AnnotationDuration: "1h"}, wrong: AnnotationDuration},
		{name: "duration that overflows", annotations: map[string]string{AnnotationARN: good, AnnotationDuration: "9223372036854775807"}, wrong: AnnotationDuration},
		{name: "duration whose product wraps around", annotations: map[string]string{AnnotationARN: good, AnnotationDuration: "18446744074609"}, wrong: AnnotationDuration},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := FromAnnotations("ns", "sa", tc.annotations, Sessions{Duration: time.Hour})
			var annotationError *AnnotationError
			switch {
			case tc.wrong != "":
				if !errors.As(err, &annotationError) || annotationError.Annotation != tc.wrong || got != nil {
					t.Fatalf("got %v, %v, want an error about %s", got, err, tc.wrong)
				}
				if len(err.Error()) > 800 || !strings.Contains(err.Error(), tc.wrong) {
					t.Errorf("error %q should be short and name %s", err, tc.wrong)
				}
			case err != nil:
				t.Fatal(err)
			case tc.none:
				if got != nil {
					t.Fatalf("got %v, want none", got)
				}
			default:
				tc.want.Namespace, tc.want.ServiceAccount, tc.want.SessionName = "ns", "sa", "ns@sa"
				if got == nil || *got != tc.want {
					t.Fatalf("got %+v, want %+v", got, tc.want)
				}
			}
		})
	}
}

// Every partition of the SDK's list has roles here, and so has one that AWS adds to it.
func TestPartitions(t *testing.T) {
	const rules = "github.com/aws/aws-sdk-go-v2/internal/endpoints/awsrulesfn"
	folder, err := exec.Command("go", "list", "-f", "{{.Dir}}", rules).Output()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(folder)), "partitions.json"))
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Partitions []struct{ ID string } }
	if err := json.Unmarshal(file, &list); err != nil || len(list.Partitions) < 8 {
		t.Fatal(list, err)
	}
	list.Partitions = append(list.Partitions, struct{ ID string }{"aws-new2-x"})
	for _, partition := range list.Partitions {
		arn := "arn:" + partition.ID + ":iam::123456789012:role/app"
		if r, err := FromAnnotations("ns", "sa", map[string]string{AnnotationARN: arn}, Sessions{Duration: time.Hour}); err != nil || r.ARN != arn {
			t.Errorf("%s: %v, %v", partition.ID, r, err)
		}
	}
}

// A value is quoted as far as it helps, and its length says what else is wrong with it.
func TestErrorQuotesTheBeginning(t *testing.T) {
	arn := "arn:aws:iam::123456789012:role/" + strings.Repeat("a", 4000)
	_, err := FromAnnotations("ns", "sa", map[string]string{AnnotationARN: arn}, Sessions{Duration: time.Hour})
	want := `annotation iam.amazonaws.com/roleArn has the value "` + arn[:128] + `"... (4031 bytes), want the ARN of an IAM role, such as arn:aws:iam::123456789012:role/NAME`
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

// What may have been meant for the role's annotation is found, and nothing else.
func TestLookalike(t *testing.T) {
	for key, want := range map[string]bool{
		"iam.amazonaws.com/roleARN": true, "iam.amazonaws.com/rolearn": true, "iam.amazonaws.com/role": true, "eks.amazonaws.com/role-arn": true,
		"iam.amazonaws.com/role-arn": true, "amazonaws.com/roleArn": true, "iam/RoleArn": true, "roleArn": true,
		AnnotationARN: false, AnnotationExternalID: false, "iam.amazonaws.com/roles": false, "example.com/arn": false,
		strings.Repeat("x", 250<<10) + "/roleARN": false,
	} {
		got := Lookalike(map[string]string{"unrelated": "x", key: "arn:aws:iam::123456789012:role/app"})
		if want != (got == key) || !want && got != "" {
			t.Errorf("%.40q: %.40q", key, got)
		}
	}
}

func TestNameAndAccountID(t *testing.T) {
	r := Role{ARN: "arn:aws-cn:iam::123456789012:role/team/app"}
	if r.Name() != "app" || r.AccountID() != "123456789012" {
		t.Errorf("got %q in %q", r.Name(), r.AccountID())
	}
}

func TestSessionName(t *testing.T) {
	stsPattern := regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	n := strings.Repeat
	seen := map[string]string{}
	for _, tc := range []struct{ namespace, name, want string }{
		{"ns", "sa", "ns@sa"},
		{n("n", 31), n("s", 32), n("n", 31) + "@" + n("s", 32)},
		{n("n", 31), n("s", 33), ""},
		{n("n", 31), n("s", 33) + "t", ""},
		{n("n", 31), n("s", 33) + "u", ""},
		{"n", n("s", 253), ""},
		{n("n", 55), n("s", 8), n("n", 55) + "@" + n("s", 8)},
		{n("n", 55), n("s", 9), ""},
		{n("n", 56), n("s", 7), n("n", 56) + "@" + n("s", 7)},
		{n("n", 56), n("s", 8), ""},
		{n("n", 63), "s", ""},
		{n("n", 62) + "m", "s", ""},
		{n("n", 63), n("s", 253), ""},
	} {
		got := SessionName(tc.namespace, tc.name)
		if tc.want != "" && got != tc.want {
			t.Errorf("%s@%s: got %s", tc.namespace, tc.name, got)
		}
		if !stsPattern.MatchString(got) {
			t.Errorf("STS would refuse %q", got)
		}
		if len(tc.namespace) <= 55 && !strings.HasPrefix(got, tc.namespace+"@") {
			t.Errorf("%s does not keep the namespace %s", got, tc.namespace)
		}
		if len(tc.namespace) > 55 && len(tc.namespace)+1+len(tc.name) > 64 && strings.Contains(got, "@") {
			t.Errorf("%s: a cut namespace must not look like a whole one", got)
		}
		if other := seen[got]; other != "" {
			t.Errorf("%s stands for %s and %s@%s", got, other, tc.namespace, tc.name)
		}
		seen[got] = tc.namespace + "@" + tc.name
		if again := SessionName(tc.namespace, tc.name); again != got {
			t.Errorf("not stable: %s, %s", got, again)
		}
	}
}

// External IDs are refused where STS would not get them, and with the reason.
func TestWebIdentityHasNoExternalID(t *testing.T) {
	const arn = "arn:aws:iam::123456789012:role/app"
	sessions := Sessions{Duration: time.Hour, WebIdentity: true}
	_, err := FromAnnotations("ns", "sa", map[string]string{AnnotationARN: arn, AnnotationExternalID: "id-1"}, sessions)
	wrong, ok := errors.AsType[*AnnotationError](err)
	if !ok || wrong.Annotation != AnnotationExternalID || !strings.Contains(err.Error(), "AssumeRoleWithWebIdentity") {
		t.Errorf("%v", err)
	}
	if r, err := FromAnnotations("ns", "sa", map[string]string{AnnotationARN: arn, AnnotationExternalID: ""}, sessions); err != nil || r.ARN != arn {
		t.Errorf("%v, %v", r, err)
	}
}
