//! Role-based access: what the roles in the store let a user do.

use crate::identity::User;
use crate::object::{Object, items, text};
use crate::store::Store;
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";

/// What somebody wants to do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    pub(crate) verb: String,
    pub(crate) group: String,
    /// `plural` or `plural/subresource`.
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// For what is no resource; else empty.
    pub(crate) path: String,
}

impl Wish {
    /// As kube-apiserver says what may not be done.
    pub(crate) fn refused(&self, user: &User) -> String {
        let who = &user.name;
        if !self.path.is_empty() {
            return format!("User {who:?} cannot {} path {:?}", self.verb, self.path);
        }
        let place = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        format!(
            "User {who:?} cannot {} resource {:?} in API group {:?} {place}",
            self.verb, self.resource, self.group
        )
    }
}

/// Whether a user may.
pub(crate) fn may(store: &Store, user: &User, wish: &Wish) -> bool {
    user.groups.iter().any(|group| group == "system:masters")
        || rules(store, user, &wish.namespace).iter().any(|rule| allows(rule, wish))
}

/// All rules that hold for a user in a namespace (empty: only those of the whole cluster).
pub(crate) fn rules(store: &Store, user: &User, namespace: &str) -> Vec<Value> {
    let mut all = vec![];
    let resource = |plural: &str| format!("{RBAC}/{plural}");
    let mut add = |binding: &Object, place: &str| {
        if !items(binding, &["subjects"]).iter().any(|subject| is(subject, user, place)) {
            return;
        }
        let role = &binding["roleRef"];
        let name = text(role, &["name"]).to_owned();
        let found = match text(role, &["kind"]) {
            "ClusterRole" => store.get(&resource("clusterroles"), &(String::new(), name)),
            "Role" if !place.is_empty() => store.get(&resource("roles"), &(place.to_owned(), name)),
            _ => None,
        };
        all.extend(found.iter().flat_map(|role| items(&role.value, &["rules"])).cloned());
    };
    for binding in store.list(&resource("clusterrolebindings"), None).0 {
        add(&binding.value, "");
    }
    if !namespace.is_empty() {
        for binding in store.list(&resource("rolebindings"), Some(namespace)).0 {
            add(&binding.value, namespace);
        }
    }
    if user.groups.iter().any(|group| group == "system:masters") {
        all.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        all.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    all
}

fn is(subject: &Value, user: &User, place: &str) -> bool {
    let name = text(subject, &["name"]);
    match text(subject, &["kind"]) {
        "User" => user.name == name,
        "Group" => user.groups.iter().any(|group| group == name),
        "ServiceAccount" => {
            let own = text(subject, &["namespace"]);
            let namespace = if own.is_empty() { place } else { own };
            !namespace.is_empty()
                && user.name == format!("system:serviceaccount:{namespace}:{name}")
        }
        _ => false,
    }
}

fn allows(rule: &Value, wish: &Wish) -> bool {
    let has = |field: &str, wanted: &str| {
        items(rule, &[field]).iter().any(|word| word == "*" || word == wanted)
    };
    if !has("verbs", &wish.verb) {
        return false;
    }
    if !wish.path.is_empty() {
        return items(rule, &["nonResourceURLs"]).iter().filter_map(Value::as_str).any(|pattern| {
            match pattern.strip_suffix('*') {
                Some(start) => wish.path.starts_with(start),
                None => wish.path == pattern,
            }
        });
    }
    let below = wish.resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    let named = items(rule, &["resourceNames"]);
    has("apiGroups", &wish.group)
        && (has("resources", &wish.resource)
            || below.is_some_and(|sub| items(rule, &["resources"]).iter().any(|r| *r == sub)))
        && (named.is_empty() || named.iter().any(|name| *name == wish.name))
}
