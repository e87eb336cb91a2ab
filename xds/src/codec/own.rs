//! What only we say, as a Struct in `filter_metadata["isthmus"]`, read strictly.

use super::wire::{Wrong, wrong};
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::{ListValue, NullValue, Struct, Value, value::Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value as Json};

const KEY: &str = "isthmus";
const FIELD: &str = "metadata.filter_metadata.isthmus";

pub(super) fn write(own: &impl Serialize) -> Option<Metadata> {
    let json = serde_json::to_value(own).expect("own metadata has text keys");
    let Some(Kind::StructValue(fields)) = to_value(json).kind else {
        unreachable!("own metadata is a struct");
    };
    Some(Metadata { filter_metadata: [(KEY.to_owned(), fields)].into(), ..Default::default() })
}

pub(super) fn read<T: DeserializeOwned>(metadata: Option<&Metadata>) -> Result<T, Wrong> {
    let own = metadata.and_then(|metadata| metadata.filter_metadata.get(KEY));
    let own = own.ok_or_else(|| {
        wrong(FIELD, "is missing: this is no resource of Isthmus' dialect (node metadata GENERATOR: isthmus)")
    })?;
    T::deserialize(to_json(own)).map_err(|error| wrong(FIELD, format!("is not usable: {error}")))
}

/// 64-bit numbers as text, as protobuf's JSON has them: a Struct's numbers are doubles.
pub(super) mod wide {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(in crate::codec) fn serialize<S: Serializer>(
        value: &u64,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(in crate::codec) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom(format!("{text:?} is no 64-bit count")))
    }
}

pub(super) fn to_value(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(NullValue::NullValue as i32),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().expect("no arbitrary precision")),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(to_value).collect() })
        }
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields.into_iter().map(|(key, value)| (key, to_value(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

fn to_json(fields: &Struct) -> Json {
    let fields = fields.fields.iter().map(|(key, value)| (key.clone(), value_to_json(value)));
    Json::Object(fields.collect::<Map<_, _>>())
}

fn value_to_json(value: &Value) -> Json {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(*value),
        Some(Kind::NumberValue(value)) => number(*value),
        Some(Kind::StringValue(value)) => Json::String(value.clone()),
        Some(Kind::ListValue(list)) => list.values.iter().map(value_to_json).collect(),
        Some(Kind::StructValue(fields)) => to_json(fields),
    }
}

fn number(value: f64) -> Json {
    /// Up to here doubles are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
        return Json::Number((value as i64).into());
    }
    Number::from_f64(value).map_or(Json::Null, Json::Number)
}
