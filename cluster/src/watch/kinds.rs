//! The kinds of the own cluster: where each is found, and what is kept of its objects.

use super::state::{Input, ServiceFacts};
use super::store::{Item, Key};
use crate::api::cluster_link::ClusterLink;
use crate::follow::{Change, Follow, follow};
use crate::heard::Heard;
use crate::parse::{self, Parsed};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Starts a follower per kind. Returns how fresh each is.
pub(super) fn spawn(
    client: &Client,
    root_namespace: &str,
    send: &mpsc::Sender<Input>,
    end: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> BTreeMap<&'static str, Heard> {
    let root: Arc<str> = root_namespace.into();
    let mut spawner = Spawner { client, send, end, tasks, heard: BTreeMap::new() };

    let place = Arc::clone(&root);
    let service = move |service: &Service| {
        let (own, door) =
            (parse::service::parse(service), parse::gateway_service::parse(service, &place));
        let findings = own.findings.into_iter().chain(door.findings).collect();
        Parsed { value: Some(ServiceFacts { service: own.value, door: door.value }), findings }
    };
    spawner.typed("Service", service, Input::Service);
    let slice = |slice: &EndpointSlice| parse::endpoint_slice::parse(slice);
    spawner.typed("EndpointSlice", slice, Input::Slice);
    spawner.typed("Pod", |pod: &Pod| fine(parse::pod::parse(pod)), Input::Pod);
    let node = |node: &Node| fine(parse::node::parse(node).map(|(_, locality)| locality));
    spawner.typed("Node", node, Input::Node);
    let uid = |namespace: &Namespace| fine(parse::namespace::parse(namespace).map(|(_, uid)| uid));
    spawner.typed("Namespace", uid, Input::Namespace);
    spawner.mesh_config(&root);
    let link = |link: &ClusterLink| fine(Some(parse::cluster_link::parse(link)));
    let every = watcher::Config::default();
    spawner.namespaced("ClusterLink", &root, every, link, Input::ClusterLink);

    const ISTIO: &str = "networking.istio.io";
    spawner.custom(
        "ServiceEntry",
        ISTIO,
        &["v1"],
        |entry| {
            // Kept as it is, but for what only tells whether it is ours.
            let mut entry = entry.clone();
            if !parse::is_published(&entry.metadata) {
                entry.metadata.managed_fields = None;
            }
            entry.metadata.resource_version = None;
            entry.metadata.generation = None;
            if let Some(data) = entry.data.as_object_mut() {
                data.remove("status");
            }
            fine(Some(entry))
        },
        Input::Entry,
    );
    let place = Arc::clone(&root);
    spawner.custom(
        "Gateway.networking.istio.io",
        ISTIO,
        &["v1"],
        move |gateway| parse::istio_gateway::parse(gateway, &place),
        Input::Passthrough,
    );
    let place = Arc::clone(&root);
    spawner.custom(
        "Gateway",
        "gateway.networking.k8s.io",
        &["v1"],
        move |gateway| parse::gateway::parse(gateway, &place),
        Input::RemoteGateway,
    );
    spawner.custom(
        "PeerAuthentication",
        "security.istio.io",
        &["v1"],
        parse::peer_authentication::parse,
        Input::PeerAuthentication,
    );
    spawner.custom(
        "DestinationRule",
        ISTIO,
        &["v1"],
        parse::destination_rule::parse,
        Input::DestinationRule,
    );
    spawner.custom(
        "ServiceExport",
        "multicluster.x-k8s.io",
        &["v1beta1", "v1alpha1"],
        parse::service_export::parse,
        Input::ServiceExport,
    );
    spawner.heard
}

fn fine<T>(value: Option<T>) -> Parsed<T> {
    Parsed { value, findings: Vec::new() }
}

struct Spawner<'a> {
    client: &'a Client,
    send: &'a mpsc::Sender<Input>,
    end: &'a CancellationToken,
    tasks: &'a mut JoinSet<()>,
    heard: BTreeMap<&'static str, Heard>,
}

impl Spawner<'_> {
    fn typed<K, T>(
        &mut self,
        kind: &'static str,
        parse: impl Fn(&K) -> Parsed<T> + Send + 'static,
        wrap: fn(Change<Item<T>>) -> Input,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        T: Send + 'static,
    {
        let heard = Heard::default();
        let apis = vec![Api::all(heard.listen(self.client.clone()))];
        self.follow(kind, apis, watcher::Config::default(), heard, parse, wrap);
    }

    fn custom<T: Send + 'static>(
        &mut self,
        kind: &'static str,
        group: &str,
        versions: &[&str],
        parse: impl Fn(&DynamicObject) -> Parsed<T> + Send + 'static,
        wrap: fn(Change<Item<T>>) -> Input,
    ) {
        let heard = Heard::default();
        let client = heard.listen(self.client.clone());
        // What follows a dot tells two kinds of one name apart; it is not part of the kind.
        let name = kind.split('.').next().expect("a split has a first part");
        let apis = versions.iter().map(|version| {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, name));
            Api::all_with(client.clone(), &resource)
        });
        self.follow(kind, apis.collect(), watcher::Config::default(), heard, parse, wrap);
    }

    fn mesh_config(&mut self, root_namespace: &str) {
        let one = format!("metadata.name={}", parse::mesh_config::NAME);
        let config = watcher::Config::default().fields(&one);
        let parse = |map: &ConfigMap| parse::mesh_config::parse(map);
        self.namespaced("ConfigMap", root_namespace, config, parse, Input::MeshConfig);
    }

    fn namespaced<K, T>(
        &mut self,
        kind: &'static str,
        namespace: &str,
        config: watcher::Config,
        parse: impl Fn(&K) -> Parsed<T> + Send + 'static,
        wrap: fn(Change<Item<T>>) -> Input,
    ) where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
        T: Send + 'static,
    {
        let heard = Heard::default();
        let api = Api::namespaced(heard.listen(self.client.clone()), namespace);
        self.follow(kind, vec![api], config, heard, parse, wrap);
    }

    fn follow<K, T>(
        &mut self,
        kind: &'static str,
        apis: Vec<Api<K>>,
        config: watcher::Config,
        heard: Heard,
        parse: impl Fn(&K) -> Parsed<T> + Send + 'static,
        wrap: fn(Change<Item<T>>) -> Input,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        T: Send + 'static,
    {
        self.heard.insert(kind, heard.clone());
        let trim = move |object: K| (Key::of(&object), parse(&object));
        let task =
            follow(Follow { apis, config, heard }, trim, wrap, self.send.clone(), self.end.clone());
        self.tasks.spawn(task);
    }
}
