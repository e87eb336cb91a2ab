//! Custom resources: filled in, pruned and judged by the schema of their definition.

use crate::object::Object;
use crate::refusal::Cause;
use crate::schema::{self, Checker};
use serde_json::Value;

/// One version of a custom resource.
#[derive(Debug)]
pub(crate) struct Custom {
    pub(crate) schema: Value,
    checker: Checker,
    /// `additionalPrinterColumns`.
    pub(crate) columns: Vec<Value>,
}

impl Custom {
    pub(crate) fn new(version: &Value) -> Result<Self, String> {
        let schema = version["schema"]["openAPIV3Schema"].clone();
        let checker = Checker::new(&schema)?;
        let columns = version["additionalPrinterColumns"].as_array().cloned().unwrap_or_default();
        Ok(Self { schema, checker, columns })
    }

    /// Takes away what the schema does not know, and fills in its defaults. Metadata has a type of its own.
    pub(crate) fn prune(&self, object: &Object) -> Result<Object, String> {
        let mut pruned = object.clone();
        let metadata = object.get("metadata").cloned().unwrap_or_default();
        if !metadata.is_null() {
            let typed: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta =
                serde::Deserialize::deserialize(&metadata)
                    .map_err(|error: serde_json::Error| error.to_string())?;
            pruned["metadata"] = serde_json::to_value(typed).map_err(|error| error.to_string())?;
        }
        schema::prune(&mut pruned, &self.schema, true);
        Ok(pruned)
    }

    pub(crate) fn defaults(&self, object: &mut Object) {
        schema::fill(object, &self.schema);
    }

    pub(crate) fn validate(&self, object: &Object) -> Vec<Cause> {
        self.checker.check(object)
    }
}
