//! Namespaces: their names, and the UID of `kube-system`, by which a cluster is known for itself.

use k8s_openapi::api::core::v1::Namespace;

/// A namespace's name and UID; one that is going away still has its objects.
pub fn parse(namespace: &Namespace) -> Option<(String, String)> {
    let meta = &namespace.metadata;
    Some((meta.name.clone()?, meta.uid.clone().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::object;

    #[test]
    fn name_and_uid() {
        let namespace = object("metadata: {name: kube-system, uid: 11-22}");
        assert_eq!(parse(&namespace), Some(("kube-system".into(), "11-22".into())));
        assert_eq!(parse(&object("metadata: {}")), None);
    }
}
