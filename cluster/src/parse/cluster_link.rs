//! ClusterLink: of our own CRD, what absent names depend on.

use crate::api::cluster_link::ClusterLink;
use mesh::inventory::Link;

/// Whether it is accepted, and whether its controller knows all of it. A link without a status was
/// never judged, so it is not complete.
pub fn parse(link: &ClusterLink) -> Link {
    let complete = link.status.as_ref().is_some_and(|status| status.complete);
    Link { accepted: link.spec.accepted, complete }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::object;

    #[test]
    fn a_link_is_complete_once_its_controller_says_so() {
        let link = |rest: &str| {
            parse(&object(&format!(
                "{{apiVersion: isthmus.dev/v1alpha1, kind: ClusterLink, metadata: {{name: west}}, {rest}}}"
            )))
        };
        assert_eq!(link("spec: {}"), Link { accepted: false, complete: false });
        assert_eq!(link("spec: {accepted: true}"), Link { accepted: true, complete: false });
        let judged = "spec: {accepted: true}, status: {complete: true}";
        assert_eq!(link(judged), Link { accepted: true, complete: true });
    }
}
