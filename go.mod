module github.com/iam4kube/iam4kube

go 1.26.0
