//! The words both directions share: packing, durations, addresses, and what is wrong where.

use super::DecodeError;
pub(super) use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
pub(super) use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
pub(super) use envoy_types::pb::envoy::config::listener::v3::Listener;
pub(super) use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
pub(super) use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::google::protobuf::{Any, Duration, UInt32Value};
use mesh::program::{ClusterName, ResourceKind, ResourceName};
use prost::{Message, Name};
use std::net::SocketAddr;

/// A field and its predicate: `filter_chains[0].filters is empty`.
#[derive(Debug)]
pub(super) struct Wrong {
    field: String,
    problem: String,
}

pub(super) fn wrong(field: &str, problem: impl Into<String>) -> Wrong {
    Wrong { field: field.to_owned(), problem: problem.into() }
}

impl Wrong {
    /// Prefixes the path: `priority` within `endpoints[2]`.
    pub(super) fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }

    pub(super) fn of(self, resource: &ResourceName) -> DecodeError {
        let resource: String = resource.to_string().chars().take(256).collect();
        DecodeError { resource, field: self.field, problem: self.problem }
    }
}

pub(super) fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(super) fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, Wrong> {
    if any.type_url != M::type_url() {
        return Err(wrong("@type", format!("is {:?}, expected {}", any.type_url, M::type_url())));
    }
    M::decode(any.value.as_slice())
        .map_err(|error| wrong("value", format!("is no {}: {error}", M::NAME)))
}

/// Unpacks, learns the name, and has errors carry it.
pub(super) fn read<M: Message + Name + Default, T>(
    kind: ResourceKind,
    any: &Any,
    name: impl Fn(&M) -> &String,
    decode: impl Fn(&M) -> Result<T, Wrong>,
) -> Result<(String, T), DecodeError> {
    let unnamed = ResourceName::new(kind, "?");
    let message: M = unpack(any).map_err(|wrong| wrong.of(&unnamed))?;
    let name = name(&message).clone();
    let value =
        decode(&message).map_err(|wrong| wrong.of(&ResourceName::new(kind, name.clone())))?;
    Ok((name, value))
}

pub(super) fn required<'a, T>(field: &str, value: Option<&'a T>) -> Result<&'a T, Wrong> {
    value.ok_or_else(|| wrong(field, "is missing"))
}

pub(super) fn uint(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn read_uint(field: &str, value: Option<&UInt32Value>) -> Result<u32, Wrong> {
    Ok(required(field, value)?.value)
}

pub(super) fn duration(milliseconds: u64) -> Option<Duration> {
    let seconds = i64::try_from(milliseconds / 1_000).expect("u64::MAX / 1000 fits i64");
    let nanos = i32::try_from(milliseconds % 1_000 * 1_000_000).expect("below 10^9 fits i32");
    Some(Duration { seconds, nanos })
}

/// What Envoy refuses to be 0 is left to its default.
pub(super) fn positive(milliseconds: u64) -> Option<Duration> {
    if milliseconds == 0 { None } else { duration(milliseconds) }
}

/// Whole milliseconds; finer or negative spans are refused, not rounded.
pub(super) fn read_duration(field: &str, value: Option<&Duration>) -> Result<u64, Wrong> {
    let Duration { seconds, nanos } = *required(field, value)?;
    let not = || wrong(field, "is not a span of whole milliseconds, zero or more");
    let seconds = u64::try_from(seconds).map_err(|_| not())?;
    let nanos = u64::try_from(nanos).map_err(|_| not())?;
    if nanos >= 1_000_000_000 || nanos % 1_000_000 != 0 {
        return Err(not());
    }
    seconds.checked_mul(1_000).and_then(|ms| ms.checked_add(nanos / 1_000_000)).ok_or_else(not)
}

pub(super) fn address(socket: SocketAddr) -> Option<core::Address> {
    Some(core::Address {
        address: Some(core::address::Address::SocketAddress(socket_address(socket))),
    })
}

pub(super) fn socket_address(socket: SocketAddr) -> core::SocketAddress {
    core::SocketAddress {
        address: socket.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(socket.port().into())),
        ..Default::default()
    }
}

pub(super) fn read_address(
    field: &str,
    value: Option<&core::Address>,
) -> Result<SocketAddr, Wrong> {
    let path = format!("{field}.socket_address");
    let Some(core::address::Address::SocketAddress(socket)) = &required(field, value)?.address
    else {
        return Err(wrong(&path, "is missing"));
    };
    let ip = socket.address.parse().map_err(|_| {
        wrong(&format!("{path}.address"), format!("{:?} is no IP address", socket.address))
    })?;
    let port = match socket.port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        Some(core::socket_address::PortSpecifier::NamedPort(_)) | None => None,
    };
    let port =
        port.ok_or_else(|| wrong(&format!("{path}.port_value"), "is no port from 0 to 65535"))?;
    Ok(SocketAddr::new(ip, port))
}

pub(super) fn read_cluster_name(field: &str, text: &str) -> Result<ClusterName, Wrong> {
    text.parse().map_err(|error: mesh::program::NotAClusterName| {
        wrong(field, format!("is not usable: {error}"))
    })
}

/// "Ask the aggregated stream."
pub(super) fn ads() -> Option<core::ConfigSource> {
    Some(core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    })
}
