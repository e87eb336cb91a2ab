#!/bin/sh
# Writes xds.descriptors.pb, which gives resources their JSON form, from the protos that the crate
# envoy-types ships. Run it when that crate's version changes. Needs protoc and cargo.
set -eu
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n "s/^host: //p")
manifest=$(cargo metadata --format-version=1 --filter-platform "$host" --manifest-path ../../Cargo.toml |
    python3 -c 'import json,sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "envoy-types"))')
protos=$(dirname "$manifest")/proto
filters=envoy/extensions/filters
protoc -I . -I "$protos/data-plane-api" -I "$protos/googleapis" -I "$protos/xds" \
    -I "$protos/protoc-gen-validate" -I "$protos/opentelemetry-proto" \
    -I "$protos/client_model" -I "$protos/cel-spec/proto" \
    --include_imports --descriptor_set_out=xds.descriptors.pb \
    nds.proto \
    envoy/config/listener/v3/listener.proto envoy/config/route/v3/route.proto \
    envoy/config/cluster/v3/cluster.proto envoy/config/endpoint/v3/endpoint.proto \
    envoy/extensions/transport_sockets/tls/v3/tls.proto \
    envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto \
    envoy/extensions/upstreams/http/v3/http_protocol_options.proto \
    $filters/network/http_connection_manager/v3/http_connection_manager.proto \
    $filters/network/tcp_proxy/v3/tcp_proxy.proto \
    $filters/network/direct_response/v3/config.proto \
    envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto \
    $filters/http/router/v3/router.proto $filters/http/rbac/v3/rbac.proto \
    $filters/network/rbac/v3/rbac.proto \
    $filters/listener/http_inspector/v3/http_inspector.proto \
    $filters/listener/tls_inspector/v3/tls_inspector.proto \
    $filters/listener/original_dst/v3/original_dst.proto
