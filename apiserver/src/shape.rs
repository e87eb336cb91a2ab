//! How the parts of an object merge: which lists are maps or sets, and which maps are one value.

use serde_json::Value;
use std::collections::BTreeMap;

/// Of one place in an object. What is not described merges as JSON does: maps by key, the rest whole.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Shape {
    pub(crate) list: List,
    /// A map that is replaced whole.
    pub(crate) atomic: bool,
    pub(crate) fields: BTreeMap<String, Shape>,
    /// Of every key that `fields` does not name.
    pub(crate) rest: Option<Box<Shape>>,
    pub(crate) items: Option<Box<Shape>>,
}

#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) enum List {
    #[default]
    Atomic,
    Set,
    /// Items are told apart by these fields; a missing one has its default.
    Map(Vec<(String, Option<Value>)>),
}

static NOTHING: Shape =
    Shape { list: List::Atomic, atomic: false, fields: BTreeMap::new(), rest: None, items: None };

impl Shape {
    pub(crate) fn field(&self, name: &str) -> &Self {
        self.fields.get(name).or(self.rest.as_deref()).unwrap_or(&NOTHING)
    }

    pub(crate) fn item(&self) -> &Self {
        self.items.as_deref().unwrap_or(&NOTHING)
    }

    /// From words: `spec.ports[port,protocol=TCP]` is a list that is a map, `metadata.finalizers{}` one that is a
    /// set, `spec.selector!` a map replaced whole. A path goes through lists of maps by their field.
    pub(crate) fn of(words: &str) -> Self {
        let mut shape = Self::default();
        let all = "metadata.finalizers{} metadata.ownerReferences[uid] metadata.managedFields";
        for word in all.split_whitespace().chain(words.split_whitespace()) {
            shape.learn(word);
        }
        shape
    }

    fn learn(&mut self, word: &str) {
        let (path, end) = match word.find(['[', '{', '!']) {
            Some(at) => word.split_at(at),
            None => (word, ""),
        };
        let mut place = self;
        for field in path.split('.') {
            // What a list of maps holds is described through its items.
            if matches!(place.list, List::Map(_)) {
                place = place.items.get_or_insert_default();
            }
            place = place.fields.entry(field.to_owned()).or_default();
        }
        match end.chars().next() {
            Some('[') => {
                let keys =
                    end.trim_matches(['[', ']']).split(',').map(|key| match key.split_once('=') {
                        Some((key, default)) => (key.to_owned(), Some(Value::from(default))),
                        None => (key.to_owned(), None),
                    });
                place.list = List::Map(keys.collect());
            }
            Some('{') => place.list = List::Set,
            Some(_) => place.atomic = true,
            None => {}
        }
    }

    /// From a schema of a CustomResourceDefinition.
    pub(crate) fn of_schema(schema: &Value) -> Self {
        let mut shape = Self::default();
        if let Some(properties) = schema["properties"].as_object() {
            let described = properties.iter();
            shape.fields = described.map(|(k, s)| (k.clone(), Self::of_schema(s))).collect();
        }
        if schema["additionalProperties"].is_object() {
            shape.rest = Some(Box::new(Self::of_schema(&schema["additionalProperties"])));
        }
        if schema["items"].is_object() {
            shape.items = Some(Box::new(Self::of_schema(&schema["items"])));
        }
        shape.atomic = schema["x-kubernetes-map-type"] == "atomic";
        shape.list = match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => List::Set,
            Some("map") => {
                let keys = schema["x-kubernetes-list-map-keys"].as_array();
                let keys = keys.into_iter().flatten().filter_map(Value::as_str);
                let default = |key: &str| {
                    let value = &schema["items"]["properties"][key]["default"];
                    (!value.is_null()).then(|| value.clone())
                };
                List::Map(keys.map(|key| (key.to_owned(), default(key))).collect())
            }
            _ => List::Atomic,
        };
        shape
    }

    /// The shape of a custom resource: its schema, and metadata as everybody has it.
    pub(crate) fn of_custom(schema: &Value) -> Self {
        let mut shape = Self::of_schema(schema);
        let metadata = Self::of("").fields.remove("metadata").expect("it was learnt");
        shape.fields.insert("metadata".into(), metadata);
        shape
    }
}

/// The key of an item of a list that is a map, as JSON of its key fields; `None` where one is missing.
pub(crate) fn item_key(item: &Value, keys: &[(String, Option<Value>)]) -> Option<Value> {
    let mut key = serde_json::Map::new();
    for (field, default) in keys {
        let value = item.get(field).or(default.as_ref());
        // A missing key field is left out, as long as another is there.
        if let Some(value) = value {
            key.insert(field.clone(), value.clone());
        }
    }
    (!key.is_empty()).then(|| Value::Object(key))
}
