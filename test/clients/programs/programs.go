// Package programs lists unmodified AWS clients and how each is run, so that tests in
// different places (network namespaces, pods of a cluster) run the same ones. Each finds
// its credentials at 169.254.169.254 without any configuration, and tells which it found. Where
// AWS's variables name container credentials, most of them ask there.
//
// It does not run anything.
package programs

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Program is a client and its command line.
type Program struct {
	Name     string
	Language string
	// CodeBase names the implementation of the metadata client: several programs can share one.
	CodeBase string
	// Packages are Debian's, NPM those of js/package.json, Build the folder of a program in
	// Go, below the top of the repository, whose path stands before Command.
	Packages, NPM []string
	Build         string
	// Command is run in the folder test/clients, or in one with a copy of Files.
	Command []string
	Files   []string
	// Region: it finds the region too.
	Region bool
	// IMDSv1: it knows no other version of the metadata service.
	IMDSv1 bool
	// Signs: it does not show what it found, but signs a request to the fake S3 with it, and
	// prints that one's answer. A wrong secret or token would be refused.
	Signs bool
	// Container is what it knows of container credentials.
	Container Container
}

// Container is what a program does where AWS's variables name container credentials:
// AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE and one of AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, which
// is known since 2016, and AWS_CONTAINER_CREDENTIALS_FULL_URI.
// https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
type Container string

const (
	// Token: it sends the token with either URI.
	Token Container = "token"
	// TokenWithFullURI: it sends the token with the full URI, and none with the relative one.
	TokenWithFullURI Container = "token with the full URI"
	// NoToken: it asks with the relative URI, without a token. With the full one it fails, or asks
	// the metadata service.
	NoToken Container = "no token"
	// None: it asks the metadata service all the same.
	None Container = "none"
)

// Asks is whether it asks for container credentials with the relative URI.
func (c Container) Asks() bool { return c != None }

// Proves is whether it sends the token with the full URI.
func (c Container) Proves() bool { return c == Token || c == TokenWithFullURI }

// Found is what a client has found. A program that Signs tells AccessKeyId only.
type Found struct {
	AccessKeyId, SecretAccessKey, SessionToken, Region string
	// Took is how long further tries took; aws-sdk-go-v2 with -times only.
	Took []time.Duration
}

// Environ is the whole environment that programs need: nothing of AWS, but where the fake
// S3 is, as IP:PORT, without and with TLS. Home has to be writable.
func Environ(home, s3, s3TLS string) []string {
	return []string{
		"PATH=/usr/bin:/bin:/usr/local/bin", "LANG=C.UTF-8", "HOME=" + home,
		"S3_HOST=" + s3, "S3_TLS_HOST=" + s3TLS,
	}
}

// All are the programs, one after the other by code base.
var All = slices.Concat(sdks, libraries, tools)

// Named returns the program with this name.
func Named(name string) Program {
	i := slices.IndexFunc(All, func(p Program) bool { return p.Name == name })
	return All[i]
}

// SDKs are AWS's own in the versions that they recommend, and the AWS CLI.
var SDKs = sdks

var sdks = []Program{
	{
		Name: "aws-sdk-go-v2", Language: "Go", CodeBase: "aws-sdk-go-v2", Container: Token,
		Build: "test/clients/gov2", Region: true,
	},
	{
		Name: "aws-sdk-go", Language: "Go", CodeBase: "aws-sdk-go", Container: Token,
		Build: "test/clients/gov1", Region: true,
	},
	{
		Name: "boto3", Language: "Python", CodeBase: "botocore", Container: NoToken, Packages: []string{"python3-boto3"},
		Command: []string{"/usr/bin/python3", "-B", "boto3/client.py"}, Files: []string{"boto3/client.py"}, Region: true,
	},
	{
		Name: "awscli", Language: "Python", CodeBase: "botocore", Container: NoToken, Packages: []string{"awscli"},
		Command: shell("aws configure export-credentials && aws configure list"), Region: true,
	},
	{
		Name: "aws-sdk-js-v3", Language: "JavaScript", CodeBase: "aws-sdk-js-v3", Container: Token, Packages: []string{"nodejs"},
		NPM:     []string{"@aws-sdk/client-sts", "@aws-sdk/ec2-metadata-service"},
		Command: []string{"node", "js/client.mjs"}, Files: []string{"js/client.mjs"}, Region: true,
	},
}

// libraries print what they find, as the SDKs do.
var libraries = []Program{
	{
		Name: "aws-sdk-js-v2", Language: "JavaScript", CodeBase: "aws-sdk-js-v2", Container: Token, Packages: []string{"nodejs"},
		NPM:     []string{"aws-sdk"},
		Command: []string{"node", "js/v2.mjs"}, Files: []string{"js/v2.mjs"}, Region: true,
	},
	{
		Name: "google-auth", Language: "JavaScript", CodeBase: "google-auth-library", Container: None, Packages: []string{"nodejs"},
		NPM:     []string{"google-auth-library"},
		Command: []string{"node", "js/google-auth.mjs"}, Files: []string{"js/google-auth.mjs"}, Region: true,
	},
	{
		Name: "mongodb", Language: "JavaScript", CodeBase: "mongodb for npm", Container: NoToken, Packages: []string{"nodejs"},
		NPM:     []string{"mongodb"},
		Command: []string{"node", "js/mongodb.mjs"}, Files: []string{"js/mongodb.mjs"},
	},
	{
		Name: "awscred", Language: "JavaScript", CodeBase: "awscred", Container: NoToken, Packages: []string{"nodejs"},
		NPM:     []string{"awscred"},
		Command: []string{"node", "js/awscred.mjs"}, Files: []string{"js/awscred.mjs"}, IMDSv1: true,
	},
	{
		Name: "mongo-go-driver", Language: "Go", CodeBase: "mongo-go-driver", Container: NoToken,
		Build: "test/clients/gomongo",
	},
	{
		Name: "minio-go", Language: "Go", CodeBase: "minio-go", Container: TokenWithFullURI,
		Build: "test/clients/gominio",
	},
	{
		Name: "boto", Language: "Python", CodeBase: "boto 2", Container: None, Packages: []string{"python3-boto"},
		Command: []string{"/usr/bin/python3", "-B", "boto/client.py"}, Files: []string{"boto/client.py"}, IMDSv1: true,
	},
	{
		// It asks in HTTP/1.1 without a Host header.
		Name: "awscrt", Language: "C", CodeBase: "aws-c-auth", Container: NoToken, Packages: []string{"python3-awscrt"},
		Command: []string{"/usr/bin/python3", "-B", "awscrt/client.py"}, Files: []string{"awscrt/client.py"},
	},
	{
		Name: "aws-sdk-ruby-v3", Language: "Ruby", CodeBase: "aws-sdk-ruby-v3", Container: NoToken, Packages: []string{"ruby", "ruby-aws-sdk-core"},
		Command: []string{"/usr/bin/ruby", "ruby/v3.rb"}, Files: []string{"ruby/v3.rb"}, Region: true,
	},
	{
		Name: "aws-sdk-ruby-v1", Language: "Ruby", CodeBase: "aws-sdk-ruby-v1", Container: None, Packages: []string{"ruby", "ruby-aws-sdk"},
		Command: []string{"/usr/bin/ruby", "ruby/v1.rb"}, Files: []string{"ruby/v1.rb"}, IMDSv1: true,
	},
	{
		Name: "fog-aws", Language: "Ruby", CodeBase: "fog-aws", Container: NoToken, Packages: []string{"ruby", "ruby-fog-aws"},
		Command: []string{"/usr/bin/ruby", "ruby/fog.rb"}, Files: []string{"ruby/fog.rb"}, Region: true,
	},
	{
		Name: "vm-ec2", Language: "Perl", CodeBase: "VM::EC2", Container: None, Packages: []string{"libvm-ec2-perl"},
		Command: []string{"/usr/bin/perl", "perl/client.pl"}, Files: []string{"perl/client.pl"}, Region: true, IMDSv1: true,
	},
	{
		Name: "async-aws", Language: "PHP", CodeBase: "async-aws", Container: NoToken, Packages: []string{"php-cli", "php-async-aws-core"},
		Command: []string{"/usr/bin/php", "php/client.php"}, Files: []string{"php/client.php"}, IMDSv1: true,
	},
}

// tools list a bucket, and so whose credentials they have.
var tools = []Program{
	{
		Name: "opendal", Language: "Rust", CodeBase: "reqsign", Container: None, Packages: []string{"nodejs"},
		NPM:     []string{"@opendal/lib-linux-x64-gnu"},
		Command: []string{"node", "js/opendal.mjs"}, Files: []string{"js/opendal.mjs"}, Signs: true,
	},
	{
		Name: "polars", Language: "Rust", CodeBase: "object_store", Container: TokenWithFullURI, Packages: []string{"nodejs"},
		NPM:     []string{"nodejs-polars-linux-x64-gnu"},
		Command: []string{"node", "js/polars.mjs"}, Files: []string{"js/polars.mjs"}, Signs: true,
	},
	{
		Name: "s3cmd", Language: "Python", CodeBase: "s3cmd", Container: None, Packages: []string{"s3cmd"},
		Command: shell("exec s3cmd --no-ssl --host=$S3_HOST --host-bucket=$S3_HOST ls s3://bucket"), Signs: true,
	},
	{
		// Unless it is told, it asks only where the firmware says that this is EC2.
		Name: "gdal", Language: "C++", CodeBase: "GDAL", Container: NoToken, Packages: []string{"gdal-bin"},
		Command: shell("AWS_S3_ENDPOINT=$S3_HOST AWS_HTTPS=NO AWS_VIRTUAL_HOSTING=FALSE CPL_AWS_AUTODETECT_EC2=NO" +
			" exec ogrinfo -ro -al /vsis3/bucket/caller.csv"),
		Signs: true,
	},
	{
		// It speaks only TLS.
		Name: "pgbackrest", Language: "C", CodeBase: "pgBackRest", Container: None, Packages: []string{"pgbackrest"},
		Command: shell("exec pgbackrest --repo1-type=s3 --repo1-s3-key-type=auto --repo1-s3-bucket=bucket --repo1-s3-region=us-east-1" +
			" --repo1-s3-endpoint=${S3_TLS_HOST%:*} --repo1-storage-port=${S3_TLS_HOST##*:} --repo1-s3-uri-style=path" +
			" --no-repo1-storage-verify-tls --repo1-path=/ --no-config --log-level-file=off --io-timeout=5 repo-ls"),
		Signs: true,
	},
	{
		Name: "rclone", Language: "Go", CodeBase: "aws-sdk-go", Container: NoToken, Packages: []string{"rclone"},
		Command: shell("exec rclone --retries=1 --low-level-retries=1 --s3-env-auth --s3-endpoint=http://$S3_HOST lsf :s3:bucket"), Signs: true,
	},
}

func shell(command string) []string { return []string{"/bin/sh", "-c", command} }

var (
	// caller is what the fake S3 puts into lists and files.
	caller = regexp.MustCompile(`\bcaller-(ASIA[A-Z2-7]{16})\b`)
	// cliRegion is a row of `aws configure list`, which says where the region is from.
	cliRegion = regexp.MustCompile(`region +(\S+) +imds`)
)

// Read returns what the program tells in what it printed, on stderr too where that cannot
// be told apart. What is missing is an error.
func (p Program) Read(output []byte) (Found, error) {
	var f Found
	text := string(output)
	if match := caller.FindStringSubmatch(text); p.Signs && match != nil {
		f.AccessKeyId = match[1]
	} else if i := strings.Index("\n"+text, "\n{"); !p.Signs && i >= 0 {
		if err := json.NewDecoder(strings.NewReader(text[i:])).Decode(&f); err != nil {
			return f, fmt.Errorf("%s printed what cannot be read: %w", p.Name, err)
		}
	}
	if row := cliRegion.FindStringSubmatch(text); row != nil {
		f.Region = row[1]
	}
	switch {
	case f.AccessKeyId == "":
		return f, errors.New(p.Name + " tells no AccessKeyId")
	case !p.Signs && f.SessionToken == "":
		return f, errors.New(p.Name + " tells no SessionToken")
	case p.Region && f.Region == "":
		return f, errors.New(p.Name + " tells no Region")
	}
	return f, nil
}
