# One target for each image: server, webhook, ip2service, ip2service-init.
#
#   docker build --target server -t registry.example/iam4kube/server:v1.0.0 .
#
# GO_IMAGE is any image with Go, CA certificates and setcap, or apt to install setcap with. A tag can come to mean another
# image: what a release is built in is named by its digest, golang:1.26.10@sha256:… .
ARG GO_IMAGE=golang:1.26.10

# Compiles for every platform on the platform of the build.
FROM --platform=${BUILDPLATFORM} ${GO_IMAGE} AS build
RUN command -v setcap || { apt-get update && apt-get install -y --no-install-recommends libcap2-bin; }
WORKDIR /src
COPY go.mod go.sum ./
COPY cmd cmd
COPY internal internal
ARG TARGETOS
ARG TARGETARCH
# An older Go gets that of go.mod's toolchain line, by its checksum: the standard library is the part of the programs
# that has needed most corrections.
ARG GOTOOLCHAIN=auto
ENV GOTOOLCHAIN=${GOTOOLCHAIN} CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH}
ARG VERSION=unreleased
ARG REVISION=unknown
# The list of modules (`go version -m`) stays in the programs.
RUN built=github.com/iam4kube/iam4kube/internal/buildinfo; \
    flags="-s -w -X ${built}.version=${VERSION} -X ${built}.revision=${REVISION}"; \
    go build -trimpath -ldflags="${flags}" -o /out/ ./cmd/... && \
    go build -trimpath -ldflags="${flags}" -tags podonly -o /out/ip2service-init ./cmd/ip2service
# Containers that are not root have no capabilities but those of the file. Such a file does not
# start where the capability is not allowed, so each is in an image of its own.
RUN setcap cap_net_admin+ep /out/ip2service && setcap cap_net_admin+ep /out/ip2service-init

FROM scratch AS base
USER 65532:65532
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.source="https://github.com/iam4kube/iam4kube" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM base AS server
LABEL org.opencontainers.image.title="iam4kube server"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/server /server
ENTRYPOINT ["/server"]

FROM base AS webhook
LABEL org.opencontainers.image.title="iam4kube webhook"
COPY --from=build /out/webhook /webhook
ENTRYPOINT ["/webhook"]

FROM base AS ip2service
LABEL org.opencontainers.image.title="iam4kube ip2service"
COPY --from=build /out/ip2service /ip2service
ENTRYPOINT ["/ip2service"]

FROM base AS ip2service-init
LABEL org.opencontainers.image.title="iam4kube ip2service for init containers"
COPY --from=build /out/ip2service-init /ip2service
ENTRYPOINT ["/ip2service"]
