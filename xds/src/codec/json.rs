//! The same resources as JSON, for files and for people: protobuf's JSON mapping, by reflection
//! over a descriptor set that `proto/generate.sh` makes from envoy-types' own sources.

use super::{DecodeError, decode, encode, kind_of, listener, wire};
use envoy_types::pb::google::protobuf::Any;
use mesh::program::{Program, Resource, ResourceName};
use mesh::world::Dialect;
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde_json::Value;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

/// Longest file read, bytes.
const JSON_MAX: usize = 64 << 20;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let set = include_bytes!("../../proto/xds.descriptors.pb");
    DescriptorPool::decode(set.as_slice()).expect("proto/generate.sh wrote a descriptor set")
});

/// A program in our own dialect as a JSON list of xDS resources, each with its `@type`.
pub fn to_json(program: &Program) -> Value {
    let resources = program.iter();
    resources.map(|(name, resource)| resource_to_json(name, resource, Dialect::Isthmus)).collect()
}

/// One resource as either dialect writes it, `@type` included.
pub fn resource_to_json(name: &ResourceName, resource: &Resource, dialect: Dialect) -> Value {
    any_to_json(&encode(name, resource, dialect)).expect("the pool has every type we write")
}

/// The listener that owns Envoy's capture port, for its bootstrap (see `listener::capture`).
pub(crate) fn capture_json(closed: &[(IpAddr, u8)], ipv6: bool) -> Value {
    let mut json = any_to_json(&wire::pack(&listener::capture(closed, ipv6)))
        .expect("the pool has every type we write");
    // A field of the bootstrap has its type by its place.
    if let Value::Object(fields) = &mut json {
        fields.remove("@type");
    }
    json
}

/// Reads a JSON list of xDS resources in our own dialect. What a proxy would not act on is an
/// error, be it unknown to xDS or just to us: a file that seems to say more than it does is worse
/// than none.
pub fn from_json(text: &str) -> Result<Program, DecodeError> {
    let file = |problem: String| DecodeError {
        resource: "the file".into(),
        field: "content".into(),
        problem,
    };
    if text.len() > JSON_MAX {
        return Err(file("is longer than 64 MiB".into()));
    }
    let list: Vec<Value> = serde_json::from_str(text)
        .map_err(|error| file(format!("is no JSON list of xDS resources: {error}")))?;
    let mut program = Program::new();
    for (at, value) in list.into_iter().enumerate() {
        let (name, resource) = read(at, value)?;
        if program.contains_key(&name) {
            let problem = format!("is the second resource of that name (element {at})");
            return Err(wire::wrong("name", problem).of(&name));
        }
        program.insert(name, Arc::new(resource));
    }
    Ok(program)
}

fn read(at: usize, value: Value) -> Result<(ResourceName, Resource), DecodeError> {
    let said = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = Some(said("name")).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| said("cluster_name") + &said("clusterName"));
    let url = said("@type");
    let resource = match kind_of(&url) {
        Some(kind) if !name.is_empty() => ResourceName::new(kind, name).to_string(),
        Some(kind) => format!("{kind:?} (element {at})"),
        None => format!("element {at}"),
    };
    let bad = |field: &str, problem: String| DecodeError {
        resource: resource.clone(),
        field: field.to_owned(),
        problem,
    };
    let Some(kind) = kind_of(&url) else {
        return Err(bad("@type", format!("{url:?} is none of the types a proxy takes")));
    };
    let message = json_to_message(&url, &value).map_err(|error| bad("content", error))?;
    let any = Any { type_url: url, value: message.encode_to_vec() };
    let (name, resource) = decode(kind, &any)?;
    // What we write of what we read must say as much as what was written.
    let understood = encode(&name, &resource, Dialect::Isthmus);
    let understood = any_to_json(&understood).expect("the pool has every type we write");
    let given = any_to_json(&any).map_err(|error| bad("content", error))?;
    if let Some(field) = beyond(&given, &understood, String::new()) {
        let problem = "says something that a proxy would not act on. Fix: remove it".to_owned();
        return Err(wire::wrong(&field, problem).of(&name));
    }
    Ok((name, resource))
}

/// The first path in `given` whose value is not in `known`.
fn beyond(given: &Value, known: &Value, path: String) -> Option<String> {
    let deeper = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            let path = deeper(key);
            match known.get(key) {
                Some(known) => beyond(value, known, path),
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(known)) if given.len() == known.len() => given
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(at, (given, known))| beyond(given, known, format!("{path}[{at}]"))),
        _ => (given != known).then_some(path),
    }
}

fn descriptor(url: &str) -> Result<MessageDescriptor, String> {
    let name = url.strip_prefix("type.googleapis.com/").unwrap_or(url);
    POOL.get_message_by_name(name).ok_or_else(|| format!("has the unknown type {name:?}"))
}

fn any_to_json(any: &Any) -> Result<Value, String> {
    let descriptor = descriptor(&any.type_url)?;
    let message = DynamicMessage::decode(descriptor, any.value.as_slice())
        .map_err(|error| format!("is not readable: {error}"))?;
    let options = prost_reflect::SerializeOptions::new().use_proto_field_name(true);
    let mut json = message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| format!("has no JSON form: {error}"))?;
    if let Value::Object(fields) = &mut json {
        fields.insert("@type".to_owned(), any.type_url.clone().into());
    }
    Ok(json)
}

fn json_to_message(url: &str, value: &Value) -> Result<DynamicMessage, String> {
    let mut fields = value.clone();
    if let Value::Object(fields) = &mut fields {
        fields.remove("@type");
    }
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor(url)?, fields, &options)
        .map_err(|error| format!("is not usable: {error}"))
}
