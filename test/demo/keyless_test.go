package main

import (
	"slices"
	"testing"
)

func TestAWSKeysAreFound(t *testing.T) {
	const list = `{"kind": "List", "items": [
		{"kind": "Secret", "metadata": {"namespace": "iam4kube", "name": "iam4kube-issuer-key"}, "data": {"current": "LS0tLS1CRUdJTg=="}},
		{"kind": "Secret", "metadata": {"namespace": "shop", "name": "key"}, "data": {"key": "QUtJQUlPU0ZPRE5ON0VYQU1QTEU="}},
		{"kind": "Secret", "metadata": {"namespace": "shop", "name": "file"}, "data": {"credentials": "YXdzX3NlY3JldF9hY2Nlc3Nfa2V5ID0geA=="}},
		{"kind": "ConfigMap", "metadata": {"namespace": "iam4kube", "name": "iam4kube-server"}, "data": {"AWS_REGION": "eu-west-1"}},
		{"kind": "ConfigMap", "metadata": {"namespace": "iam4kube", "name": "accounts"}, "data": {"accounts.json": "{\"accessKeyID\": \"AKIAIOSFODNN7EXAMPLE\"}"}},
		{"kind": "Pod", "metadata": {"namespace": "shop", "name": "pod"}, "spec": {"containers": [{"env": [{"name": "AWS_ACCESS_KEY_ID", "value": "x"}]}]}}
	]}`
	looked, found, err := awsKeys([]byte(list))
	if want := []string{"Secret shop/key", "Secret shop/file", "ConfigMap iam4kube/accounts", "Pod shop/pod"}; err != nil || looked != 6 || !slices.Equal(found, want) {
		t.Errorf("%d, %q, %v; want %q", looked, found, err, want)
	}
}
