//! Questions that are answered and not stored: whose token, who am I, what may I do.

use crate::access::{self, Wish};
use crate::identity::{Bound, Claims, ISSUER, Reference, User};
use crate::kind::Kind;
use crate::object::{self, at, fresh_uid, items, text, timestamp};
use crate::operation::Operation;
use crate::refusal::{Cause, Refusal};
use crate::server::{Outcome, Server};
use serde_json::{Value, json};

/// Shortest and longest life of a token, seconds.
const LIFE: std::ops::RangeInclusive<i64> = 600..=1 << 32;

impl Server {
    pub(crate) fn review(&self, user: &User, operation: Operation) -> Result<Outcome, Refusal> {
        let Operation { kind, mut body, namespace, .. } = operation;
        if body["kind"] != kind.kind.as_str() || body["apiVersion"] != kind.api_version().as_str() {
            let message = format!("the body is no {} of {}", kind.kind, kind.api_version());
            return Err(Refusal::bad_request(message));
        }
        let spec = body["spec"].clone();
        let status = match &*kind.plural {
            "tokenreviews" => self.review_token(&spec),
            "selfsubjectreviews" => json!({"userInfo": user.to_json()}),
            "selfsubjectaccessreviews" => self.judge(&kind, user, &spec)?,
            "selfsubjectrulesreviews" => {
                let namespace = text(&spec, &["namespace"]);
                if namespace.is_empty() {
                    return Err(Refusal::bad_request("no namespace on request"));
                }
                self.list_rules(user, namespace)
            }
            "subjectaccessreviews" | "localsubjectaccessreviews" => {
                let own = text(&spec, &["resourceAttributes", "namespace"]);
                if kind.namespaced && own != namespace {
                    let message = format!("must match metadata.namespace: {namespace}");
                    return Err(Refusal::bad_request(message));
                }
                let groups = items(&spec, &["groups"]).iter().filter_map(Value::as_str);
                let subject = User {
                    name: text(&spec, &["user"]).to_owned(),
                    groups: groups.map(str::to_owned).collect(),
                    ..User::default()
                };
                if subject.name.is_empty() && subject.groups.is_empty() {
                    let why = "at least one of user or group must be specified";
                    let causes = vec![Cause::invalid("spec.user", &json!(""), why)];
                    return Err(Refusal::invalid(&kind, "", causes));
                }
                self.judge(&kind, &subject, &spec)?
            }
            _ => return Err(Refusal::internal("an unknown review")),
        };
        body["status"] = status;
        if !body["metadata"].is_object() {
            body["metadata"] = json!({});
        }
        Ok(Outcome::Value { code: 201, value: body, warnings: vec![] })
    }

    fn review_token(&self, spec: &Value) -> Value {
        let asked = items(spec, &["audiences"]).iter().filter_map(Value::as_str);
        let mut audiences: Vec<String> = asked.map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences.push(ISSUER.into());
        }
        match self.keys.review(text(spec, &["token"]), &audiences, &self.store) {
            Ok((user, granted)) => {
                json!({"authenticated": true, "user": user.to_json(), "audiences": granted})
            }
            Err(why) => json!({"user": {}, "error": why}),
        }
    }

    fn judge(&self, kind: &Kind, user: &User, spec: &Value) -> Result<Value, Refusal> {
        let resource = &spec["resourceAttributes"];
        let path = &spec["nonResourceAttributes"];
        if resource.is_object() == path.is_object() {
            let why =
                "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            let cause = Cause::invalid("spec.resourceAttributes", resource, why);
            return Err(Refusal::invalid(kind, "", vec![cause]));
        }
        let wish = if resource.is_object() {
            let part = |field: &str| text(resource, &[field]).to_owned();
            let resource = match &*part("subresource") {
                "" => part("resource"),
                sub => format!("{}/{sub}", part("resource")),
            };
            Wish {
                verb: part("verb"),
                group: part("group"),
                resource,
                namespace: part("namespace"),
                name: part("name"),
                path: String::new(),
            }
        } else {
            let part = |field: &str| text(path, &[field]).to_owned();
            Wish { verb: part("verb"), path: part("path"), ..Wish::default() }
        };
        Ok(json!({"allowed": access::may(&self.store, user, &wish)}))
    }

    fn list_rules(&self, user: &User, namespace: &str) -> Value {
        let (mut resources, mut paths) = (vec![], vec![]);
        for rule in access::rules(&self.store, user, namespace) {
            if items(&rule, &["nonResourceURLs"]).is_empty() {
                resources.push(rule);
            } else {
                paths.push(rule);
            }
        }
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
    }

    /// A token of a service account.
    pub(crate) fn token(
        &self,
        operation: Operation,
        now: jiff::Timestamp,
    ) -> Result<Outcome, Refusal> {
        let Operation { kind, namespace, name, mut body, .. } = operation;
        if body["kind"] != "TokenRequest" {
            return Err(Refusal::bad_request(
                "the body is no TokenRequest of authentication.k8s.io/v1",
            ));
        }
        let Some(account) = self.store.get(&kind.resource, &(namespace.clone(), name.clone()))
        else {
            return Err(Refusal::not_found(&kind, &name));
        };
        let spec = &body["spec"];
        let life = spec["expirationSeconds"].as_i64().unwrap_or(3600);
        if !LIFE.contains(&life) {
            let why = if life < 600 {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            let cause = Cause::invalid("spec.expirationSeconds", &json!(life), why);
            let mut refusal = Refusal::invalid(&kind, "", vec![cause]);
            refusal.message =
                refusal.message.replacen("ServiceAccount", "TokenRequest.authentication.k8s.io", 1);
            return Err(refusal);
        }
        let asked = items(spec, &["audiences"]).iter().filter_map(Value::as_str);
        let mut audiences: Vec<String> = asked.map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences.push(ISSUER.into());
        }
        let mut bound = Bound {
            namespace: namespace.clone(),
            serviceaccount: Reference {
                name: name.clone(),
                uid: object::uid(&account.value).into(),
            },
            pod: None,
            secret: None,
            node: None,
        };
        if let Some(reference) = spec.get("boundObjectRef").filter(|r| r.is_object()) {
            self.bind(&mut bound, reference)?;
        }
        let seconds = now.as_second();
        let claims = Claims {
            aud: audiences.clone(),
            exp: seconds + life,
            iat: seconds,
            iss: ISSUER.into(),
            jti: fresh_uid(),
            bound,
            nbf: seconds,
            sub: format!("system:serviceaccount:{namespace}:{name}"),
        };
        let token = self.keys.sign(&claims).map_err(Refusal::internal)?;
        let end = jiff::Timestamp::from_second(seconds + life).map_err(Refusal::internal)?;
        body["apiVersion"] = json!("authentication.k8s.io/v1");
        body["metadata"] =
            json!({"name": name, "namespace": namespace, "creationTimestamp": timestamp(now)});
        body["spec"]["audiences"] = json!(audiences);
        body["spec"]["expirationSeconds"] = json!(life);
        body["status"] = json!({"token": token, "expirationTimestamp": timestamp(end)});
        Ok(Outcome::Value { code: 201, value: body, warnings: vec![] })
    }

    fn bind(&self, bound: &mut Bound, reference: &Value) -> Result<(), Refusal> {
        let part = |field: &str| text(reference, &[field]);
        let (plural, namespace) = match (part("apiVersion"), part("kind")) {
            ("v1", "Pod") => ("pods", bound.namespace.clone()),
            ("v1", "Secret") => ("secrets", bound.namespace.clone()),
            ("v1", "Node") => ("nodes", String::new()),
            (version, kind) => {
                let message = format!("cannot bind token to object of type {version}, Kind={kind}");
                return Err(Refusal::bad_request(message));
            }
        };
        let registry = self.registry();
        let Some(kind) = registry.find("", "v1", plural) else {
            return Err(Refusal::internal("a built-in kind is not served"));
        };
        let name = part("name").to_owned();
        let Some(found) = self.store.get(&kind.resource, &(namespace, name.clone())) else {
            return Err(Refusal::not_found(kind, &name));
        };
        let (uid, own) = (part("uid"), object::uid(&found.value));
        if !uid.is_empty() && uid != own {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Refusal::conflict(kind, &name, &why));
        }
        let reference = Some(Reference { name: name.clone(), uid: own.to_owned() });
        match plural {
            "pods" => {
                let account = text(&found.value, &["spec", "serviceAccountName"]);
                if account != bound.serviceaccount.name {
                    let message = format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        bound.serviceaccount.name
                    );
                    return Err(Refusal::bad_request(message));
                }
                bound.pod = reference;
                let node = at(&found.value, &["spec", "nodeName"]).and_then(Value::as_str);
                let node = node
                    .and_then(|node| self.store.get("/nodes", &(String::new(), node.to_owned())));
                bound.node = node.map(|node| Reference {
                    name: object::name(&node.value).to_owned(),
                    uid: object::uid(&node.value).to_owned(),
                });
            }
            "secrets" => bound.secret = reference,
            _ => bound.node = reference,
        }
        Ok(())
    }
}
