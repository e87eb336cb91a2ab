//! The kinds that are served: the built-in ones, and those of the CustomResourceDefinitions.

use crate::builtin::Builtin;
use crate::custom::Custom;
use crate::shape::Shape;
use crate::store::Resource;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One kind in one version of its group.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    /// Has subresource `status`.
    pub(crate) status: bool,
    /// Under which name it is stored: one for all versions.
    pub(crate) resource: Resource,
    /// How its lists and maps merge.
    pub(crate) shape: Arc<Shape>,
    pub(crate) rules: Rules,
}

/// Who says what a good object is.
#[derive(Debug)]
pub(crate) enum Rules {
    Builtin(&'static Builtin),
    Custom(Arc<Custom>),
    /// Nothing is stored: a question that is answered.
    Review,
}

impl Kind {
    /// `plural`, or `plural.group`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `version`, or `group/version`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    pub(crate) fn is_custom(&self) -> bool {
        matches!(self.rules, Rules::Custom(_))
    }

    pub(crate) fn is_review(&self) -> bool {
        matches!(self.rules, Rules::Review)
    }

    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        match self.rules {
            Rules::Review => &["create"],
            Rules::Builtin(_) if self.is("", "namespaces") => {
                &["create", "delete", "get", "list", "patch", "update", "watch"]
            }
            Rules::Builtin(_) | Rules::Custom(_) => {
                &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            }
        }
    }
}

/// All kinds, by group, version and plural.
#[derive(Debug, Default, Clone)]
pub(crate) struct Registry {
    kinds: BTreeMap<(String, String, String), Arc<Kind>>,
}

impl Registry {
    pub(crate) fn add(&mut self, kind: Kind) {
        let key = (kind.group.clone(), kind.version.clone(), kind.plural.clone());
        self.kinds.insert(key, Arc::new(kind));
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.kinds.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    pub(crate) fn by_kind(&self, group: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.kinds.values().find(|known| known.group == group && known.kind == kind)
    }

    /// Groups with their versions, newest first; the nameless group is `""`.
    pub(crate) fn groups(&self) -> BTreeMap<String, Vec<String>> {
        let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (group, version, _) in self.kinds.keys() {
            let versions = groups.entry(group.clone()).or_default();
            if !versions.contains(version) {
                versions.push(version.clone());
            }
        }
        for versions in groups.values_mut() {
            versions.sort_by_key(|version| std::cmp::Reverse(rank(version)));
        }
        groups
    }

    pub(crate) fn in_version(&self, group: &str, version: &str) -> Vec<&Arc<Kind>> {
        let all = self.kinds.iter();
        all.filter(|((g, v, _), _)| g == group && v == version).map(|(_, kind)| kind).collect()
    }
}

/// v2 before v1 before v1beta1 before v1alpha1, as Kubernetes orders them.
fn rank(version: &str) -> (u8, u32, u32) {
    let digits = |text: &str| text.parse().unwrap_or(0);
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    for (word, level) in [("alpha", 1), ("beta", 2)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return (level, digits(major), digits(minor));
        }
    }
    (3, digits(rest), 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_are_ordered_as_kubernetes_does() {
        let mut all = ["v1alpha1", "v1", "v2beta1", "v10", "foo", "v1beta2", "v2beta2"];
        all.sort_by_key(|version| std::cmp::Reverse(super::rank(version)));
        assert_eq!(all, ["v10", "v1", "v2beta2", "v2beta1", "v1beta2", "v1alpha1", "foo"]);
    }
}
