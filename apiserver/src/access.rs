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

/// The first right in a role's rules, or in the rules a binding gives, that its author does not have: nobody gives
/// what is not his. Who may `escalate` roles or `bind` this one may.
pub(crate) fn excess(store: &Store, user: &User, object: &Object) -> Option<String> {
    let kind = text(object, &["kind"]);
    let namespace = text(object, &["metadata", "namespace"]);
    let (given, verb, plural, name) = match kind {
        "Role" | "ClusterRole" => {
            let plural = if kind == "Role" { "roles" } else { "clusterroles" };
            let name = text(object, &["metadata", "name"]);
            (items(object, &["rules"]).to_vec(), "escalate", plural, name)
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            let own = text(object, &["roleRef", "kind"]) == "Role";
            let (plural, place) = if own { ("roles", namespace) } else { ("clusterroles", "") };
            let name = text(object, &["roleRef", "name"]);
            let role = store.get(&format!("{RBAC}/{plural}"), &(place.to_owned(), name.to_owned()));
            let rules = role.map(|role| items(&role.value, &["rules"]).to_vec());
            (rules.unwrap_or_default(), "bind", plural, name)
        }
        _ => return None,
    };
    let free = Wish {
        verb: verb.into(),
        group: RBAC.into(),
        resource: plural.into(),
        namespace: namespace.into(),
        name: name.into(),
        path: String::new(),
    };
    if may(store, user, &free) {
        return None;
    }
    let own = rules(store, user, namespace);
    given.iter().flat_map(wishes).find_map(|wish| {
        let held = own.iter().any(|rule| allows(rule, &wish));
        (!held).then(|| format!("{} {}{} {}", wish.verb, wish.resource, wish.path, wish.name))
    })
}

/// A rule as the single rights it gives.
fn wishes(rule: &Value) -> Vec<Wish> {
    let words = |field: &str| -> Vec<String> {
        items(rule, &[field]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut all = vec![];
    let mut names = words("resourceNames");
    if names.is_empty() {
        names.push(String::new());
    }
    for verb in words("verbs") {
        for path in words("nonResourceURLs") {
            all.push(Wish { verb: verb.clone(), path, ..Wish::default() });
        }
        for group in words("apiGroups") {
            for resource in words("resources") {
                for name in &names {
                    let (verb, group, name) = (verb.clone(), group.clone(), name.clone());
                    let resource = resource.clone();
                    all.push(Wish { verb, group, resource, name, ..Wish::default() });
                }
            }
        }
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
