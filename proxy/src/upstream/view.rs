//! One destination as one Program tells it, joined with what is remembered of its endpoints.

use super::connect::Secure;
use super::health::{Path, Seat};
use super::outlier::{Millis, Verdict};
use super::pick::{Candidate, Group, Plan, Stage};
use super::{Ask, ConnectFailed, Inner, Picked, Upstream};
use crate::engine::Shared;
use arc_swap::ArcSwapOption;
use mesh::name::{ClusterId, Identity, TrustDomain};
use mesh::program::{
    Cluster, ClusterName, Direction, Endpoints, LbEndpoint, Resource, ResourceKind, ResourceName,
    Snapshot,
};
use rustls_pki_types::ServerName;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use trust::tls::Expected;

/// Seats remembered beyond those in the Program: an endpoint that flaps keeps its record.
const FORMER_SEATS_MAX: usize = 64;

pub(crate) fn cluster_resource(name: &ClusterName) -> ResourceName {
    ResourceName::new(ResourceKind::Cluster, name.to_string())
}

pub(crate) fn endpoints_resource(name: &ClusterName) -> ResourceName {
    ResourceName::new(ResourceKind::Endpoints, name.to_string())
}

/// An immutable picture; all that changes is in the seats.
#[derive(Debug)]
pub(crate) struct View {
    /// The Program it was made from, to see at a glance that nothing changed.
    from: Weak<Snapshot>,
    endpoints: Option<Arc<Resource>>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) seats: Vec<(Arc<LbEndpoint>, Arc<Seat>)>,
    pub(crate) groups: Vec<Group>,
    /// Endpoints that must not be dialled, and why.
    refused: Vec<String>,
    plan: ArcSwapOption<Dated>,
}

/// A plan with the epoch of health it rests on.
#[derive(Debug)]
pub(crate) struct Dated {
    pub(crate) plan: Plan,
    epoch: u64,
}

/// Whom one speaks to and how: the announcing cluster and the ALPN.
type Speech = (ClusterId, Vec<u8>);

/// What comes from the Cluster resource alone: it survives changes of endpoints.
pub(crate) struct Settings {
    resource: Option<Arc<Resource>>,
    pub(crate) cluster: Arc<Cluster>,
    sni: Result<ServerName<'static>, String>,
    identities: HashMap<ClusterId, Arc<BTreeSet<Identity>>>,
    /// By announcing cluster and ALPN.
    tls: Mutex<HashMap<Speech, Arc<rustls::ClientConfig>>>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Settings {
    fn new(name: &ClusterName, resource: Option<Arc<Resource>>) -> Self {
        let cluster = match resource.as_deref() {
            Some(Resource::Cluster(cluster)) => cluster.clone(),
            // Gone from the Program: a destination without endpoints and rights.
            Some(
                Resource::Listener(_)
                | Resource::Route(_)
                | Resource::Endpoints(_)
                | Resource::Secret(_)
                | Resource::Zone(_),
            )
            | None => Cluster {
                name: name.clone(),
                sni: String::new(),
                protocol: mesh::name::Protocol::Tcp,
                load_balancing: mesh::program::LoadBalancing::LeastRequest,
                connect_timeout_ms: 0,
                outlier: Default::default(),
                pool: Default::default(),
                server_identities: Default::default(),
            },
        };
        let sni = ServerName::try_from(cluster.sni.clone())
            .map_err(|_| format!("its server name {:?} is not one TLS can carry", cluster.sni));
        let identities = cluster
            .server_identities
            .iter()
            .map(|(cluster, identities)| (cluster.clone(), Arc::new(identities.clone())))
            .collect();
        Self { resource, cluster: Arc::new(cluster), sni, identities, tls: Mutex::default() }
    }

    /// Why an endpoint must not be dialled from here.
    fn refuses(&self, endpoint: &LbEndpoint, shared: &Shared) -> Option<String> {
        let say = |why: &str| Some(format!("{} in {} {why}", endpoint.address, endpoint.cluster));
        if !dialable(endpoint.address.ip()) {
            return say("is not an address of a workload");
        }
        match self.cluster.name.direction {
            // A gateway is a door into its own cluster, to meshed pods, and never to another door.
            Direction::SniDnat if endpoint.gateway => say("is a gateway, not a pod"),
            Direction::SniDnat if endpoint.cluster != shared.cluster => {
                say("is not of this gateway's cluster")
            }
            Direction::SniDnat if !endpoint.tls => say("is not meshed"),
            Direction::SniDnat => None,
            Direction::Outbound | Direction::Inbound => {
                if endpoint.tls {
                    let known = self.identities.get(&endpoint.cluster);
                    return match known {
                        Some(identities) if !identities.is_empty() => None,
                        Some(_) | None => say("has no identity that may answer"),
                    };
                }
                if endpoint.gateway || endpoint.network != shared.network {
                    return say("would be plaintext beyond this network");
                }
                None
            }
        }
    }

    fn domains(&self, cluster: &ClusterId) -> BTreeSet<TrustDomain> {
        let of = |ids: &Arc<BTreeSet<Identity>>| ids.iter().map(|id| id.domain.clone()).collect();
        self.identities.get(cluster).map(of).unwrap_or_default()
    }
}

/// Whatever a Program says, nobody is dialled at a link-local (cloud metadata), multicast,
/// broadcast or unspecified address.
fn dialable(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified())
        }
        IpAddr::V6(v6) => !(v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified()),
    }
}

impl View {
    pub(crate) fn candidate(&self, at: usize, now: Millis) -> Candidate {
        let (endpoint, seat) = &self.seats[at];
        Candidate {
            weight: endpoint.weight,
            verdict: seat.verdict(now),
            barred: false,
            changes_at: seat.changes_at(now),
        }
    }

    /// The plan of now for requests that avoid nobody.
    pub(crate) fn plan(&self, now: Millis, shared: &Shared) -> Arc<Dated> {
        let epoch = shared.epoch.load(Ordering::Acquire);
        if let Some(dated) = self.plan.load_full()
            && dated.epoch == epoch
            && now < dated.plan.valid_until
        {
            return dated;
        }
        let plan = Plan::new(&self.groups, Stage::Sound, |at| self.candidate(at, now));
        let dated = Arc::new(Dated { plan, epoch });
        self.plan.store(Some(dated.clone()));
        dated
    }

    pub(crate) fn why_nobody(&self, now: Millis) -> String {
        if self.seats.is_empty() {
            return match (&self.settings.resource, &self.endpoints, self.refused.is_empty()) {
                (None, _, _) => "it is gone from the configuration".into(),
                (_, None, _) => "its endpoints are not known".into(),
                (_, _, true) => "no endpoint is ready".into(),
                (_, _, false) => self.refused.join("; "),
            };
        }
        let count = self.seats.len();
        let ejected = |(_, seat): &&(_, Arc<Seat>)| seat.verdict(now) == Verdict::Ejected;
        let ejected = self.seats.iter().filter(ejected).count();
        format!("{ejected} of {count} are set aside after failures")
    }
}

impl Upstream {
    /// The destination in the Program of now.
    pub(crate) fn view(&self) -> Arc<View> {
        let inner = &self.inner;
        let snapshot = inner.shared.snapshot.borrow().clone();
        let is_of = |view: &View| std::ptr::eq(view.from.as_ptr(), Arc::as_ptr(&snapshot));
        // The Weak keeps the allocation, so an equal address is the same Program.
        if let Some(view) = inner.view.load_full()
            && is_of(&view)
        {
            return view;
        }
        let mut seats = inner.seats.lock().expect("building a view does not panic");
        let before = inner.view.load_full();
        if let Some(view) = &before
            && is_of(view)
        {
            return view.clone();
        }
        let view = Arc::new(build(inner, &snapshot, before.as_deref(), &mut seats));
        inner.view.store(Some(view.clone()));
        view
    }

    /// What TLS needs for this endpoint; `None` where it is dialled without.
    pub(crate) fn secure(
        &self,
        picked: &Picked,
        ask: &Ask,
    ) -> Result<Option<Secure>, ConnectFailed> {
        let endpoint = picked.endpoint();
        if ask.raw || !endpoint.tls {
            return Ok(None);
        }
        let settings = self.view().settings.clone();
        let name = settings.sni.clone().map_err(|why| self.nobody(&why))?;
        let Some(identities) = settings.identities.get(&endpoint.cluster) else {
            return Err(self.nobody(&format!("{} has no identity here", endpoint.cluster)));
        };
        let key = (endpoint.cluster.clone(), ask.alpn.clone());
        let mut cached = settings.tls.lock().expect("nothing panics in it");
        let config = cached.entry(key).or_insert_with(|| {
            let shared = &self.inner.shared;
            let alpn: &[&[u8]] = if ask.alpn.is_empty() { &[] } else { &[&ask.alpn] };
            trust::tls::client_config(
                Some(shared.svid.clone()),
                shared.bundle.clone(),
                Expected::AnyOf(identities.clone()),
                alpn,
            )
        });
        Ok(Some(Secure { config: config.clone(), name }))
    }
}

fn build(
    inner: &Inner,
    snapshot: &Arc<Snapshot>,
    before: Option<&View>,
    known: &mut HashMap<super::Key, Arc<Seat>>,
) -> View {
    let same = |a: &Option<Arc<Resource>>, b: Option<&Arc<Resource>>| match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    let shared = &inner.shared;
    let cluster = snapshot.program.get(&inner.cluster_resource);
    let endpoints = snapshot.program.get(&inner.endpoints_resource);
    let settings = match before {
        Some(view) if same(&view.settings.resource, cluster) => view.settings.clone(),
        Some(_) | None => Arc::new(Settings::new(&inner.name, cluster.cloned())),
    };
    let from = Arc::downgrade(snapshot);
    if let Some(view) = before
        && Arc::ptr_eq(&view.settings, &settings)
        && same(&view.endpoints, endpoints)
    {
        return View {
            from,
            endpoints: view.endpoints.clone(),
            settings,
            seats: view.seats.clone(),
            groups: view.groups.clone(),
            refused: view.refused.clone(),
            plan: ArcSwapOption::new(view.plan.load_full()),
        };
    }
    let mut view = View {
        from,
        endpoints: endpoints.cloned(),
        settings,
        seats: Vec::new(),
        groups: Vec::new(),
        refused: Vec::new(),
        plan: ArcSwapOption::empty(),
    };
    // Without its Cluster resource a destination has no rights, whatever endpoints say.
    if let (Some(_), Some(Resource::Endpoints(Endpoints { groups, .. }))) =
        (&view.settings.resource, endpoints.map(|e| &**e))
    {
        for group in groups {
            let mut seats = Vec::new();
            for endpoint in &group.endpoints {
                if let Some(why) = view.settings.refuses(endpoint, shared) {
                    view.refused.push(why);
                    continue;
                }
                let key = (endpoint.address, endpoint.cluster.clone());
                let path = shared.path(&key, || Path::new(endpoint));
                if endpoint.gateway {
                    let mut domains = path.domains.lock().expect("nothing panics in it");
                    domains.extend(view.settings.domains(&endpoint.cluster));
                }
                let seat = known.entry(key).or_insert_with(|| Arc::new(Seat::new(path)));
                seats.push(view.seats.len());
                view.seats.push((Arc::new(endpoint.clone()), seat.clone()));
            }
            if !seats.is_empty() {
                view.groups.push(Group { priority: group.priority, weight: group.weight, seats });
            }
        }
        view.groups.sort_by_key(|group| group.priority);
    }
    if known.len() > view.seats.len() + FORMER_SEATS_MAX {
        let kept: BTreeSet<&super::Key> = view.seats.iter().map(|(_, s)| &s.path.key).collect();
        known.retain(|key, _| kept.contains(key));
        shared.forget_paths();
    }
    view
}
