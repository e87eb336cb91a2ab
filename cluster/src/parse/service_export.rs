//! ServiceExport (MCS API): the consent of a namespace to have its service of that name exported.

use super::{Notes, Parsed};
use kube::api::DynamicObject;
use mesh::name::ServiceName;

/// The exported service's name: the object's own.
pub fn parse(object: &DynamicObject) -> Parsed<ServiceName> {
    let mut notes = Notes::of("ServiceExport", &object.metadata);
    match ServiceName::new(&notes.object.namespace, &notes.object.name) {
        Ok(name) => notes.done(Some(name)),
        Err(error) => {
            notes.refuse(
                3090,
                "metadata.name",
                format!("no Service can have this name, so nothing is exported: {error}."),
                "give it the name of the Service to export.",
            );
            notes.done(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::{object, show};
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(name: &str, expected: Expect) {
        let export = format!(
            "{{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceExport, metadata: \
             {{namespace: shop, name: '{name}'}}}}"
        );
        expected.assert_eq(&show(&parse(&object(&export))));
    }

    #[test]
    fn its_name_is_the_services() {
        check(
            "hello",
            expect![[r#"
            shop/hello
        "#]],
        );
    }

    #[test]
    fn a_name_no_service_can_have_is_refused() {
        check(
            "hello.world",
            expect![[r#"
            nothing
            Refused ISM3090 ServiceExport shop/hello.world metadata.name: no Service can have this name, so nothing is exported: a service name is an RFC 1123 label; "hello.world" is not: only a-z, 0-9 and '-' are allowed. Fix: give it the name of the Service to export.
        "#]],
        );
    }
}
