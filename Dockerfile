# Trent with SoftHSM, for trying out and for the compose file. For production
# build from this and add your HSM vendor's PKCS#11 library.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG RELEASE=container
RUN go build -trimpath -ldflags "-X main.release=${RELEASE}" -o /trent ./cmd/trent

FROM debian:bookworm-slim
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends softhsm2 ca-certificates curl openssl \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --user-group --home-dir /var/lib/trent --create-home trent \
 && install -d -o trent -g trent -m 0700 /var/lib/trent/softhsm /run/trent /run/officer /run/admin \
 && install -d -o trent -g trent -m 0755 /run/password
COPY --from=build /trent /usr/local/bin/trent
COPY packaging/container-setup /usr/local/bin/container-setup
USER trent
WORKDIR /var/lib/trent
ENV SOFTHSM2_CONF=/var/lib/trent/softhsm/softhsm2.conf \
    TRENT_HSM_MODULE=/usr/lib/softhsm/libsofthsm2.so \
    TRENT_HSM_TOKEN=trent
EXPOSE 4600 4601
ENTRYPOINT ["trent"]
CMD ["--help"]
