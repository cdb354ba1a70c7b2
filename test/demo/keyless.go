package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// server is where `make` puts the server's program, which is also what an admin runs.
const server = "../bin/server"

// issuerURL is the one of manifests/demo.
const issuerURL = "https://issuer.invalid/demo"

// publish makes the key that the server signs with, and puts the documents by which AWS verifies
// that on the web server that is the issuer's URL.
func (d *demo) publish() error {
	folder := filepath.Join(d.cluster.Dir, "issuer")
	say("$ server issuer --issuer %s --out %s", issuerURL, folder)
	cmd := exec.CommandContext(d.ctx, server, "issuer", "--issuer", issuerURL, "--out", folder, "--kubeconfig", d.cluster.Kubeconfig())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("server issuer: %w", err)
	}
	// By apply, because the step may be tried again.
	documents, err := d.kubectl("", false, "-n", "iam4kube", "create", "configmap", "iam4kube-demo-issuer",
		"--from-file="+filepath.Join(folder, ".well-known", "openid-configuration"), "--from-file="+filepath.Join(folder, "keys.json"), "--dry-run=client", "-o", "json")
	if err != nil {
		return err
	}
	_, err = d.kubectl(documents, false, "apply", "-f", "-")
	return err
}

// kinds are all that can hold a key or give one to a program.
const kinds = "secrets,configmaps,serviceaccounts,pods,podtemplates,deployments,daemonsets,replicasets"

// showKeyless looks for an AWS key in the cluster, and at what STS was asked by whom.
func (d *demo) showKeyless() error {
	title("Where the AWS key is: nowhere")
	objects, err := d.kubectl("", false, "get", kinds, "-A", "-o", "json")
	if err != nil {
		return err
	}
	looked, found, err := awsKeys([]byte(objects))
	switch {
	case err != nil:
		return err
	case len(found) > 0:
		return fmt.Errorf("%w: an AWS key in %s", errOurs, strings.Join(found, ", "))
	}
	say("none in the cluster's %d Secrets, ConfigMaps, pods and what pods are made by", looked)
	log, err := d.kubectl("", false, "-n", "iam4kube", "logs", "deployment/iam4kube-demo-sts")
	if err != nil {
		return err
	}
	byToken, byKey := strings.Count(log, " AssumeRoleWithWebIdentity role="), strings.Count(log, " AssumeRole role=")
	say("STS was asked for roles %d times by AssumeRoleWithWebIdentity, with a token that the server signs for each ServiceAccount, and %d times by AssumeRole, which needs a key",
		byToken, byKey)
	if byToken == 0 || byKey > 0 {
		return fmt.Errorf("%w: want tokens alone", errOurs)
	}
	return nil
}

// awsKey is an access key, or a name under which programs look for one.
var awsKey = regexp.MustCompile(`\b(AKIA|ASIA)[A-Z0-9]{16}\b|(?i:aws_(access_key_id|secret_access_key))`)

// awsKeys returns in how many objects of a list it looked, and those with an AWS key.
func awsKeys(list []byte) (looked int, found []string, err error) {
	var all struct{ Items []json.RawMessage }
	if err := json.Unmarshal(list, &all); err != nil {
		return 0, nil, err
	}
	for _, item := range all.Items {
		var object struct {
			Kind     string
			Metadata struct{ Namespace, Name string }
			Data     map[string]string
		}
		if err := json.Unmarshal(item, &object); err != nil {
			return 0, nil, err
		}
		texts := []string{string(item)}
		if object.Kind == "Secret" {
			for _, encoded := range object.Data {
				value, err := base64.StdEncoding.DecodeString(encoded)
				if err != nil {
					return 0, nil, err
				}
				texts = append(texts, string(value))
			}
		}
		if slices.ContainsFunc(texts, awsKey.MatchString) {
			found = append(found, fmt.Sprintf("%s %s/%s", object.Kind, object.Metadata.Namespace, object.Metadata.Name))
		}
	}
	return len(all.Items), found, nil
}
