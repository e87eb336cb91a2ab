//! kube-rs, unchanged, against the server: what our own programs do all day.

use crate::support::{Running, apply, code, dynamic};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec, TokenReview};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent,
    WatchParams,
};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};

#[tokio::test]
async fn objects_are_made_read_changed_and_deleted() {
    let server = Running::start().await;
    let client = server.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let map: ConfigMap = serde_json::from_value(
        json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "data": {"k": "v"}}),
    )
    .unwrap();
    let made = maps.create(&PostParams::default(), &map).await.unwrap();
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    assert_eq!(code(maps.create(&PostParams::default(), &map).await), 409);

    // A write on an old version is refused, and names the reason.
    let patch = json!({"data": {"k": "w", "l": "1"}});
    let newer = maps.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_ne!(newer.metadata.resource_version, made.metadata.resource_version);
    let stale = maps.replace("a", &PostParams::default(), &made).await;
    let Err(kube::Error::Api(status)) = stale else { panic!("{stale:?}") };
    assert_eq!((status.code, &*status.reason), (409, "Conflict"));
    let patch = json!({"data": {"l": null}});
    let map = maps.patch("a", &PatchParams::default(), &Patch::Strategic(&patch)).await.unwrap();
    assert_eq!(
        map.data.unwrap().into_iter().collect::<Vec<_>>(),
        [("k".to_owned(), "w".to_owned())]
    );
    // A write that changes nothing is none.
    let same = maps.get("a").await.unwrap();
    let again = maps.replace("a", &PostParams::default(), &same).await.unwrap();
    assert_eq!(again.metadata.resource_version, same.metadata.resource_version);

    for (labels, count) in [("x=1", 1), ("x!=1", 0), ("x in (1,2)", 1), ("!x", 0)] {
        let found = maps.list(&ListParams::default().labels(labels)).await.unwrap();
        assert_eq!(found.items.len(), count, "{labels}");
    }
    let wrong = Preconditions { uid: Some("other".into()), resource_version: None };
    let params = DeleteParams { preconditions: Some(wrong), ..DeleteParams::default() };
    assert_eq!(code(maps.delete("a", &params).await), 409);
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(maps.get("a").await), 404);
    let elsewhere: Api<ConfigMap> = Api::namespaced(client, "nowhere");
    assert_eq!(code(elsewhere.create(&PostParams::default(), &same).await), 400);
    server.stop().await;
}

#[tokio::test]
async fn a_namespace_takes_its_contents_with_it_and_finalizers_hold() {
    let server = Running::start().await;
    let client = server.client().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    apply(&client, &shop).await.unwrap();
    let held = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "held", "namespace": "shop", "finalizers": ["example.com/hold"]},
    });
    apply(&client, &held).await.unwrap();
    let free = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "free", "namespace": "shop"}});
    apply(&client, &free).await.unwrap();
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "shop");
    assert_eq!(code(maps.get("free").await), 404);
    assert!(maps.get("held").await.unwrap().metadata.deletion_timestamp.is_some());
    assert_eq!(code(apply(&client, &free).await), 403);
    let patch = json!({"metadata": {"finalizers": null}});
    maps.patch("held", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(code(maps.get("held").await), 404);
    assert_eq!(code(namespaces.get("shop").await), 404);
    server.stop().await;
}

#[tokio::test]
async fn what_is_owned_goes_with_its_last_owner() {
    let server = Running::start().await;
    let client = server.client().await;
    let map = |name: &str, owners: &[(&str, &str)]| {
        let owners: Vec<Value> = owners
            .iter()
            .map(|(name, uid)| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid}))
            .collect();
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", "ownerReferences": owners}})
    };
    let one = apply(&client, &map("one", &[])).await.unwrap().metadata.uid.unwrap();
    let two = apply(&client, &map("two", &[])).await.unwrap().metadata.uid.unwrap();
    let below =
        apply(&client, &map("below", &[("one", &one)])).await.unwrap().metadata.uid.unwrap();
    apply(&client, &map("last", &[("below", &below)])).await.unwrap();
    apply(&client, &map("both", &[("one", &one), ("two", &two)])).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    maps.delete("one", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(maps.get("below").await), 404);
    assert_eq!(code(maps.get("last").await), 404);
    assert_eq!(maps.get("both").await.unwrap().metadata.owner_references.unwrap().len(), 1);
    maps.delete("two", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(maps.get("both").await), 404);
    server.stop().await;
}

#[tokio::test]
async fn field_owners_conflict_and_give_up() {
    let server = Running::start().await;
    let client = server.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let config = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data});
    let one = PatchParams::apply("one");
    let two = PatchParams::apply("two");
    maps.patch("m", &one, &Patch::Apply(&config(json!({"a": "1", "b": "1"})))).await.unwrap();
    let before = maps.get("m").await.unwrap();
    let same =
        maps.patch("m", &one, &Patch::Apply(&config(json!({"a": "1", "b": "1"})))).await.unwrap();
    assert_eq!(
        same.metadata.resource_version, before.metadata.resource_version,
        "nothing was changed"
    );
    // The same value is shared, another is a conflict that names owner and field.
    maps.patch("m", &two, &Patch::Apply(&config(json!({"a": "1"})))).await.unwrap();
    let refused = maps.patch("m", &two, &Patch::Apply(&config(json!({"a": "1", "b": "2"})))).await;
    let Err(kube::Error::Api(status)) = refused else { panic!("{refused:?}") };
    assert_eq!(status.code, 409);
    let causes = status.details.as_ref().unwrap().causes.clone();
    assert_eq!((&*causes[0].field, &*causes[0].reason), (".data.b", "FieldManagerConflict"));
    maps.patch("m", &two.clone().force(), &Patch::Apply(&config(json!({"b": "2"})))).await.unwrap();
    // Two gave up `a`, which one still holds; one gives up `a` too, and it goes.
    let data = |map: ConfigMap| map.data.unwrap_or_default().into_iter().collect::<Vec<_>>();
    let text = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    assert_eq!(data(maps.get("m").await.unwrap()), [text("a", "1"), text("b", "2")]);
    let left = maps.patch("m", &one, &Patch::Apply(&config(json!({})))).await.unwrap();
    assert_eq!(data(left), [text("b", "2")]);
    server.stop().await;
}

#[tokio::test]
async fn a_watch_tells_what_happened_after_a_version() {
    let server = Running::start().await;
    let client = server.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let list = maps.list(&ListParams::default()).await.unwrap();
    let from = list.metadata.resource_version.unwrap();
    let config = |name: &str, on: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", "labels": {"on": on}}});
    apply(&client, &config("a", "yes")).await.unwrap();
    apply(&client, &config("b", "no")).await.unwrap();
    apply(&client, &config("b", "yes")).await.unwrap();
    apply(&client, &config("a", "no")).await.unwrap();
    maps.delete("b", &DeleteParams::default()).await.unwrap();
    let params = WatchParams::default().labels("on=yes").timeout(1);
    let events: Vec<_> = maps.watch(&params, &from).await.unwrap().try_collect().await.unwrap();
    let told: Vec<String> = events
        .iter()
        .filter_map(|event| match event {
            WatchEvent::Added(map) => Some(format!("+{}", map.metadata.name.as_deref()?)),
            WatchEvent::Modified(map) => Some(format!("~{}", map.metadata.name.as_deref()?)),
            WatchEvent::Deleted(map) => Some(format!("-{}", map.metadata.name.as_deref()?)),
            WatchEvent::Bookmark(_) => None,
            WatchEvent::Error(error) => panic!("{error:?}"),
        })
        .collect();
    assert_eq!(told, ["+a", "+b", "-a", "-b"]);
    // What is older than the server remembers is gone.
    let mut events = maps.watch(&WatchParams::default().timeout(5), "1").await.unwrap().boxed();
    let Some(Ok(WatchEvent::Error(error))) = events.next().await else { panic!("no error") };
    assert_eq!((error.code, &*error.reason), (410, "Expired"));
    server.stop().await;
}

#[tokio::test]
async fn watchers_of_the_runtime_list_in_pages_and_stream() {
    let server = Running::start().await;
    let client = server.client().await;
    for index in 0..25 {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{index:02}"), "namespace": "default"}});
        apply(&client, &map).await.unwrap();
    }
    for config in
        [watcher::Config::default().page_size(10), watcher::Config::default().streaming_lists()]
    {
        let maps: Api<ConfigMap> = Api::all(client.clone());
        let mut stream = watcher::watcher(maps, config).boxed();
        let mut names = vec![];
        loop {
            match stream.next().await.unwrap().unwrap() {
                Event::Init => {}
                Event::InitApply(map) => names.extend(map.metadata.name),
                Event::InitDone => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(names.len(), 25);
        let name = format!("late-{}", rand_name());
        let late = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}});
        apply(&client, &late).await.unwrap();
        let Event::Apply(map) = stream.next().await.unwrap().unwrap() else { panic!("no apply") };
        assert_eq!(map.metadata.name.as_deref(), Some(&*name));
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        maps.delete(&name, &DeleteParams::default()).await.unwrap();
        assert!(matches!(stream.next().await.unwrap().unwrap(), Event::Delete(_)));
    }
    server.stop().await;
}

fn rand_name() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

#[tokio::test]
async fn our_own_definitions_are_served_and_their_schemas_hold() {
    let server = Running::start().await;
    let client = server.client().await;
    for (_, yaml) in cluster::api::crd_yaml() {
        let crd: Value = serde_saphyr::from_str(&yaml).unwrap();
        apply(&client, &crd).await.unwrap();
        // Done again, it changes nothing.
        let api = dynamic(&client, &crd);
        let name = crd["metadata"]["name"].as_str().unwrap();
        let before = api.get(name).await.unwrap();
        apply(&client, &crd).await.unwrap();
        assert_eq!(
            before.metadata.resource_version,
            api.get(name).await.unwrap().metadata.resource_version
        );
    }
    let groups = client.list_api_groups().await.unwrap();
    assert!(groups.groups.iter().any(|group| group.name == "isthmus.dev"));
    let link = |spec: Value| {
        json!({
            "apiVersion": "isthmus.dev/v1alpha1", "kind": "ClusterLink",
            "metadata": {"name": "west", "namespace": "default"}, "spec": spec,
        })
    };
    let good = apply(&client, &link(json!({"alien": 1}))).await;
    let version = match &good {
        Ok(_) => "v1alpha1",
        Err(error) => panic!("{error}"),
    };
    let stored = dynamic(&client, &link(json!({}))).get("west").await.unwrap();
    assert!(stored.data["spec"].get("alien").is_none(), "{version}: unknown fields are pruned");
    assert_eq!(stored.metadata.generation, Some(1));
    assert_eq!(code(apply(&client, &link(json!([]))).await), 422);
    server.stop().await;
}

#[tokio::test]
async fn tokens_are_made_reviewed_and_bound_to_their_pod() {
    let server = Running::start().await;
    let client = server.client().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "default"}});
    apply(&client, &account).await.unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1", "namespace": "default"},
        "spec": {"serviceAccountName": "web", "containers": [{"name": "app", "image": "none"}]},
    });
    let uid = apply(&client, &pod).await.unwrap().metadata.uid.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec!["istio-ca".into()]),
            expiration_seconds: Some(3600),
            bound_object_ref: Some(
                serde_json::from_value(
                    json!({"apiVersion": "v1", "kind": "Pod", "name": "web-1", "uid": uid}),
                )
                .unwrap(),
            ),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let made =
        accounts.create_token_request("web", &PostParams::default(), &request).await.unwrap();
    let token = made.status.unwrap().token.unwrap();
    let reviews: Api<TokenReview> = Api::all(client.clone());
    let review = async |token: &str, audience: &str| {
        let review =
            serde_json::from_value(json!({"spec": {"token": token, "audiences": [audience]}}))
                .unwrap();
        reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap()
    };
    let status = review(&token, "istio-ca").await;
    assert_eq!(status.authenticated, Some(true));
    let user = status.user.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:default:web"));
    assert_eq!(user.extra.unwrap()["authentication.kubernetes.io/pod-name"], ["web-1"]);
    assert_ne!(review(&token, "other").await.authenticated, Some(true));
    assert_ne!(review(&format!("{token}x"), "istio-ca").await.authenticated, Some(true));
    // It is no token for this server, and ends with its pod.
    let with = server.client_with(&token).await;
    assert_eq!(code(Api::<Pod>::namespaced(with, "default").get("web-1").await), 401);
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    pods.delete("web-1", &DeleteParams::default()).await.unwrap();
    assert_ne!(review(&token, "istio-ca").await.authenticated, Some(true));
    server.stop().await;
}

#[tokio::test]
async fn roles_let_in_and_keep_out() {
    let server = Running::start().await;
    let client = server.client().await;
    for object in [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader", "namespace": "default"}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "reader", "namespace": "default"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["open"], "verbs": ["get", "list", "watch"]}]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "reader", "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}]}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "open", "namespace": "default"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shut", "namespace": "default"}}),
    ] {
        apply(&client, &object).await.unwrap();
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let admin = client;
    let made = accounts
        .create_token_request("reader", &PostParams::default(), &TokenRequest::default())
        .await
        .unwrap();
    let reader = server.client_with(&made.status.unwrap().token.unwrap()).await;
    let secrets: Api<Secret> = Api::namespaced(reader.clone(), "default");
    secrets.get("open").await.unwrap();
    secrets.list(&ListParams::default().fields("metadata.name=open")).await.unwrap();
    let Err(kube::Error::Api(status)) = secrets.get("shut").await else { panic!("let in") };
    assert_eq!(
        status.message,
        "secrets \"shut\" is forbidden: User \"system:serviceaccount:default:reader\" cannot get resource \"secrets\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(code(secrets.list(&ListParams::default()).await), 403);
    assert_eq!(code(secrets.delete("open", &DeleteParams::default()).await), 403);
    assert_eq!(code(Api::<Namespace>::all(reader).list(&ListParams::default()).await), 403);
    // Nobody gives what is not his.
    for object in [
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "author", "namespace": "default"},
            "rules": [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["*"]}]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "author", "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "author"},
            "subjects": [{"kind": "ServiceAccount", "name": "author", "namespace": "default"}]}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "author", "namespace": "default"}}),
    ] {
        apply(&admin, &object).await.unwrap();
    }
    let made = accounts
        .create_token_request("author", &PostParams::default(), &TokenRequest::default())
        .await
        .unwrap();
    let author = server.client_with(&made.status.unwrap().token.unwrap()).await;
    let role = |verb: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "given", "namespace": "default"},
        "rules": [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["get", verb]}]})
    };
    // With all verbs he has `escalate` too, and may; without, he may give what he has.
    apply(&author, &role("list")).await.unwrap();
    let narrow = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "author", "namespace": "default"},
        "rules": [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["get", "create", "patch", "update"]}]});
    apply(&admin, &narrow).await.unwrap();
    assert_eq!(code(apply(&author, &role("delete")).await), 403);
    apply(&author, &role("create")).await.unwrap();
    let binding = |role: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": format!("given-{role}"), "namespace": "default"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "author", "namespace": "default"}]})
    };
    assert_eq!(code(apply(&author, &binding("reader")).await), 403);
    apply(&author, &binding("given")).await.unwrap();
    let nobody = server.client_with("made-up").await;
    assert_eq!(code(Api::<Namespace>::all(nobody).list(&ListParams::default()).await), 401);
    server.stop().await;
}

#[tokio::test]
async fn services_have_addresses_and_leases_one_holder() {
    let server = Running::start().await;
    let client = server.client().await;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]},
    });
    apply(&client, &service).await.unwrap();
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let web = services.get("web").await.unwrap();
    let address = web.spec.as_ref().unwrap().cluster_ip.clone().unwrap();
    assert!(address.starts_with("10.96."), "{address}");
    let status = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.18.1.11", "ipMode": "VIP"}]}},
    });
    services
        .patch_status("web", &PatchParams::apply("lb").force(), &Patch::Apply(&status))
        .await
        .unwrap();
    apply(&client, &service).await.unwrap();
    let web = services.get("web").await.unwrap();
    assert_eq!(web.spec.unwrap().cluster_ip.unwrap(), address);
    let ingress = web.status.unwrap().load_balancer.unwrap().ingress.unwrap();
    assert_eq!(ingress[0].ip.as_deref(), Some("198.18.1.11"));

    let leases: Api<Lease> = Api::namespaced(client, "default");
    let lease = |holder: &str, version: Option<String>| -> Lease {
        serde_json::from_value(json!({"metadata": {"name": "l", "resourceVersion": version}, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15}})).unwrap()
    };
    let first = leases.create(&PostParams::default(), &lease("a", None)).await.unwrap();
    assert_eq!(code(leases.create(&PostParams::default(), &lease("b", None)).await), 409);
    let version = first.metadata.resource_version;
    leases.replace("l", &PostParams::default(), &lease("b", version.clone())).await.unwrap();
    assert_eq!(code(leases.replace("l", &PostParams::default(), &lease("a", version)).await), 409);
    server.stop().await;
}
