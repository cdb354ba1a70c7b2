package fakests

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Tag is a session tag.
type Tag struct{ Key, Value string }

// policyMemberPattern are those of PolicyArns alone: a web identity's tags are in its token.
var policyMemberPattern = regexp.MustCompile(`\APolicyArns\.member\.[1-9]\d*\.arn\z`)

// memberPattern are the parameters that are lists: Tags, TransitiveTagKeys and PolicyArns.
var memberPattern = regexp.MustCompile(`\A(?:Tags\.member\.[1-9][0-9]*\.(?:Key|Value)|TransitiveTagKeys\.member\.[1-9][0-9]*|PolicyArns\.member\.[1-9][0-9]*\.arn)\z`)

// Patterns of the API reference, https://docs.aws.amazon.com/STS/latest/APIReference/API_Tag.html
var (
	tagCharacters         = regexp.MustCompile(`\A[\p{L}\p{Z}\p{N}_.:/=+\-@]*\z`)
	tagKeyPattern         = constraint{"tags.member.key", 1, 128, tagCharacters, `[\p{L}\p{Z}\p{N}_.:/=+\-@]+`}
	tagValuePattern       = constraint{"tags.member.value", 0, 256, tagCharacters, `[\p{L}\p{Z}\p{N}_.:/=+\-@]*`}
	sourceIdentityPattern = constraint{"sourceIdentity", 2, 64, regexp.MustCompile(`\A[\w+=,.@-]*\z`), `[\w+=,.@-]*`}
)

const (
	maxTags     = 50
	maxPolicies = 10
	// maxPacked is a stand-in for AWS's limit of tags and policies packed into the session
	// token, whose compression is not published: bytes of keys, values and ARNs.
	maxPacked = 4096
)

// parseSession reads the lists, whose members have to be numbered from 1.
func (req *assumeRequest) parseSession(query url.Values) (violations []string) {
	for i := 1; ; i++ {
		key, value := fmt.Sprintf("Tags.member.%d.Key", i), fmt.Sprintf("Tags.member.%d.Value", i)
		if !query.Has(key) {
			break
		}
		violations = append(violations, tagKeyPattern.check(query.Get(key))...)
		violations = append(violations, tagValuePattern.check(query.Get(value))...)
		req.tags = append(req.tags, Tag{query.Get(key), query.Get(value)})
	}
	for i := 1; query.Has(fmt.Sprintf("TransitiveTagKeys.member.%d", i)); i++ {
		key := query.Get(fmt.Sprintf("TransitiveTagKeys.member.%d", i))
		violations = append(violations, tagKeyPattern.check(key)...)
		req.transitive = append(req.transitive, key)
	}
	for i := 1; query.Has(fmt.Sprintf("PolicyArns.member.%d.arn", i)); i++ {
		req.policies = append(req.policies, query.Get(fmt.Sprintf("PolicyArns.member.%d.arn", i)))
	}
	if len(req.tags) > maxTags {
		violations = append(violations, fmt.Sprintf("Value at 'tags' failed to satisfy constraint: Member must have length less than or equal to %d", maxTags))
	}
	return violations
}

var policyARNPattern = regexp.MustCompile(`\Aarn:aws(?:-[a-z]+)*:iam::(?:aws|\d{12}):policy/(?:[!-~]+/)*[\w+=,.@-]{1,128}\z`)

// checkSession is what STS checks after the form of each parameter.
func (req *assumeRequest) checkSession() *apiError {
	packed := 0
	seen := map[string]bool{}
	for _, t := range req.tags {
		key := strings.ToLower(t.Key)
		if seen[key] {
			return errParameter("Tags", "Duplicate tag keys found. Please note that Tag keys are case insensitive.")
		}
		if strings.HasPrefix(key, "aws:") {
			return errParameter("Tags", "Tag keys with the prefix aws: are reserved")
		}
		seen[key] = true
		packed += len(t.Key) + len(t.Value)
	}
	for _, key := range req.transitive {
		if !slices.ContainsFunc(req.tags, func(t Tag) bool { return t.Key == key }) {
			return errParameter("TransitiveTagKeys", "there is no tag with the transitive key "+key)
		}
	}
	if len(req.policies) > maxPolicies {
		return errParameter("PolicyArns", "at most 10")
	}
	for _, arn := range req.policies {
		if !policyARNPattern.MatchString(arn) {
			return errParameter("PolicyArns", arn+" is not the ARN of a managed policy")
		}
		packed += len(arn)
	}
	if packed > maxPacked {
		return errPackedPolicyTooLarge
	}
	return nil
}
