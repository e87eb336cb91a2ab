//! The kinds of the own cluster: where each is found, what is kept of its objects, and who brings
//! them: followers of an API server, or a list of objects.

use super::state::{Input, ServiceFacts, State};
use super::store::{Item, Key};
use crate::api::cluster_link::ClusterLink;
use crate::follow::{Change, Follow, follow};
use crate::heard::Heard;
use crate::parse::{self, Parsed};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use mesh::inventory::Inventory;
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
    let mut spawner = Spawner { client, send, end, tasks, heard: BTreeMap::new() };
    visit(root_namespace, &mut spawner);
    spawner.heard
}

/// What these objects are to a control plane; kinds that it does not read are passed over. An object
/// that is not of its kind's shape, which no API server would have taken, is an error.
pub(super) fn read(
    objects: &[DynamicObject],
    root_namespace: &str,
) -> anyhow::Result<Option<Arc<Inventory>>> {
    let mut reader = Reader { objects, state: State::new(root_namespace), problem: None };
    visit(root_namespace, &mut reader);
    match reader.problem {
        Some(problem) => Err(problem),
        None => Ok(reader.state.inventory()),
    }
}

/// Whoever brings the objects of a kind.
trait Bring {
    /// All there are.
    fn everywhere<K, T>(
        &mut self,
        kind: &'static str,
        parse: impl Fn(&K) -> Parsed<T> + Send + 'static,
        wrap: fn(Change<Item<T>>) -> Input,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        T: Send + 'static;

    /// Those of one namespace, or the one of that name there.
    fn within<K, T>(
        &mut self,
        kind: &'static str,
        namespace: &str,
        name: Option<&str>,
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
        T: Send + 'static;

    /// `versions`: the preferred one first. What follows a dot in `kind` tells two kinds of one name
    /// apart; it is not part of the kind.
    fn custom<T: Send + 'static>(
        &mut self,
        kind: &'static str,
        group: &str,
        versions: &[&str],
        parse: impl Fn(&DynamicObject) -> Parsed<T> + Send + 'static,
        wrap: fn(Change<Item<T>>) -> Input,
    );
}

/// Every kind, with what is kept of it.
fn visit(root_namespace: &str, bring: &mut impl Bring) {
    let root: Arc<str> = root_namespace.into();
    let place = Arc::clone(&root);
    let service = move |service: &Service| {
        let (own, door) =
            (parse::service::parse(service), parse::gateway_service::parse(service, &place));
        let findings = own.findings.into_iter().chain(door.findings).collect();
        Parsed { value: Some(ServiceFacts { service: own.value, door: door.value }), findings }
    };
    bring.everywhere("Service", service, Input::Service);
    let slice = |slice: &EndpointSlice| parse::endpoint_slice::parse(slice);
    bring.everywhere("EndpointSlice", slice, Input::Slice);
    bring.everywhere("Pod", |pod: &Pod| fine(parse::pod::parse(pod)), Input::Pod);
    let node = |node: &Node| fine(parse::node::parse(node).map(|(_, locality)| locality));
    bring.everywhere("Node", node, Input::Node);
    let uid = |namespace: &Namespace| fine(parse::namespace::parse(namespace).map(|(_, uid)| uid));
    bring.everywhere("Namespace", uid, Input::Namespace);
    let one = Some(parse::mesh_config::NAME);
    let config = |map: &ConfigMap| parse::mesh_config::parse(map);
    bring.within("ConfigMap", &root, one, config, Input::MeshConfig);
    let link = |link: &ClusterLink| fine(Some(parse::cluster_link::parse(link)));
    bring.within("ClusterLink", &root, None, link, Input::ClusterLink);

    const ISTIO: &str = "networking.istio.io";
    bring.custom(
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
    bring.custom(
        "Gateway.networking.istio.io",
        ISTIO,
        &["v1", "v1beta1"],
        move |gateway| parse::istio_gateway::parse(gateway, &place),
        Input::Passthrough,
    );
    let place = Arc::clone(&root);
    bring.custom(
        "Gateway",
        "gateway.networking.k8s.io",
        &["v1"],
        move |gateway| parse::gateway::parse(gateway, &place),
        Input::RemoteGateway,
    );
    bring.custom(
        "PeerAuthentication",
        "security.istio.io",
        &["v1", "v1beta1"],
        parse::peer_authentication::parse,
        Input::PeerAuthentication,
    );
    bring.custom(
        mesh::authorize::KIND,
        "security.istio.io",
        &["v1", "v1beta1"],
        parse::authorization_policy::parse,
        Input::AuthorizationPolicy,
    );
    bring.custom(
        "DestinationRule",
        ISTIO,
        &["v1", "v1beta1"],
        parse::destination_rule::parse,
        Input::DestinationRule,
    );
    bring.custom(
        "ServiceExport",
        "multicluster.x-k8s.io",
        &["v1beta1", "v1alpha1"],
        parse::service_export::parse,
        Input::ServiceExport,
    );
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

impl Bring for Spawner<'_> {
    fn everywhere<K, T>(
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

    fn within<K, T>(
        &mut self,
        kind: &'static str,
        namespace: &str,
        name: Option<&str>,
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
        let every = watcher::Config::default();
        let config = match name {
            None => every,
            Some(name) => every.fields(&format!("metadata.name={name}")),
        };
        self.follow(kind, vec![api], config, heard, parse, wrap);
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
        let apis = versions.iter().map(|version| {
            let resource =
                ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, bare(kind)));
            Api::all_with(client.clone(), &resource)
        });
        self.follow(kind, apis.collect(), watcher::Config::default(), heard, parse, wrap);
    }
}

fn bare(kind: &str) -> &str {
    kind.split('.').next().expect("a split has a first part")
}

/// Hands out a list of objects, kind by kind.
struct Reader<'a> {
    objects: &'a [DynamicObject],
    state: State,
    problem: Option<anyhow::Error>,
}

impl Reader<'_> {
    fn of<'a>(
        &'a self,
        kind: &'a str,
        versions: &'a [String],
    ) -> impl Iterator<Item = &'a DynamicObject> {
        self.objects.iter().filter(move |object| {
            let types = object.types.as_ref();
            types.is_some_and(|it| it.kind == kind && versions.contains(&it.api_version))
        })
    }

    fn hand<K, T>(
        &mut self,
        wanted: impl Fn(&ObjectMeta) -> bool,
        parse: impl Fn(&K) -> Parsed<T>,
        wrap: fn(Change<Item<T>>) -> Input,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let (kind, version) = (K::kind(&()), [K::api_version(&()).into_owned()]);
        let (mut items, mut problem) = (Vec::new(), None);
        for object in self.of(&kind, &version).filter(|object| wanted(&object.metadata)) {
            match object.clone().try_parse::<K>() {
                Ok(object) => items.push((Key::of(&object), parse(&object))),
                Err(error) => {
                    let name = object.metadata.name.as_deref().unwrap_or_default();
                    problem = Some(anyhow::Error::new(error).context(format!("{kind} {name}")));
                }
            }
        }
        self.problem = self.problem.take().or(problem);
        self.state.apply(wrap(Change::Replaced(items)));
    }
}

impl Bring for Reader<'_> {
    fn everywhere<K, T>(
        &mut self,
        _: &'static str,
        parse: impl Fn(&K) -> Parsed<T> + Send + 'static,
        wrap: fn(Change<Item<T>>) -> Input,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        T: Send + 'static,
    {
        self.hand(|_| true, parse, wrap);
    }

    fn within<K, T>(
        &mut self,
        _: &'static str,
        namespace: &str,
        name: Option<&str>,
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
        let here = |meta: &ObjectMeta| {
            meta.namespace.as_deref() == Some(namespace)
                && name.is_none_or(|name| meta.name.as_deref() == Some(name))
        };
        self.hand(here, parse, wrap);
    }

    fn custom<T: Send + 'static>(
        &mut self,
        kind: &'static str,
        group: &str,
        versions: &[&str],
        parse: impl Fn(&DynamicObject) -> Parsed<T> + Send + 'static,
        wrap: fn(Change<Item<T>>) -> Input,
    ) {
        let versions: Vec<String> =
            versions.iter().map(|version| format!("{group}/{version}")).collect();
        let objects = self.of(bare(kind), &versions);
        let items = objects.map(|object| (Key::of(object), parse(object))).collect();
        self.state.apply(wrap(Change::Replaced(items)));
    }
}
