//! One cluster that is installed into: who it is, and whether it can take us.

use anyhow::{Context as _, Result, bail, ensure};
use cluster::operator::Operator;
use cluster::operator::look::{Look, Wants};
use cluster::secret::{self, Cacerts};
use mesh::export::ROOT_NAMESPACE;
use mesh::name::{ClusterId, Network, TrustDomain};
use std::time::{Duration, Instant};

/// One cluster, before anything is changed in it.
pub(super) struct Site {
    pub(super) operator: Operator,
    pub(super) cluster: ClusterId,
    pub(super) network: Network,
    pub(super) trust_domain: TrustDomain,
    /// UID of Namespace `kube-system`.
    pub(super) uid: String,
    /// The signing key that stands, where one does.
    pub(super) cacerts: Option<Cacerts>,
    /// The root certificates that its workloads trust, where it is installed already; PEM.
    pub(super) roots: Option<String>,
}

/// An API server must answer its first request within this, and all of them within the second.
const LOOK_MAX: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));
/// The codes by which a look says that something is not there, as it is before an install.
const NOT_INSTALLED: &str = "ISM2006";
const NO_CACERTS: &str = "ISM2302";
/// The first release whose kubelets start sidecars before the application by themselves
/// (KEP-753, beta and on by default).
const KUBERNETES_MIN: (u32, u32) = (1, 29);
/// An address is there within this after the gateway runs, or is not waited for.
const ADDRESS_MAX: Duration = Duration::from_secs(30);

impl Site {
    /// Reads who the cluster is; `names` and `networks` are what the operator said, by context.
    ///
    /// # Errors
    /// Where it cannot be installed into, and why.
    pub(super) async fn look(
        operator: Operator,
        names: &[(String, String)],
        networks: &[(String, String)],
    ) -> Result<Self> {
        let context = operator.context.clone();
        let wants = Wants {
            root_namespace: ROOT_NAMESPACE.into(),
            ca_namespace: secret::NAMESPACE.into(),
            lease: "isthmus-federation".into(),
            first: LOOK_MAX.0,
            all: LOOK_MAX.1,
            rights: true,
            inventory: false,
            pods: false,
        };
        let look = operator.look(&wants).await.map_err(|silent| {
            anyhow::anyhow!(
                "ISM2074 the API server of {context} ({}) does not serve us: {}. Fix: check that \
                 `kubectl --context {context} get ns` works",
                operator.server,
                silent.said
            )
        })?;
        able(&context, &look)?;
        // What cannot be read is not absent: a key or a name that stands must not be replaced.
        let unread = |what: &str, why: &str| {
            anyhow::anyhow!("ISM2074 {context}: {what} could not be read: {why}")
        };
        let mesh = match &look.mesh {
            Ok((Some(mesh), _)) => Some(mesh),
            Ok((None, findings)) => {
                let findings: Vec<String> = findings.iter().map(ToString::to_string).collect();
                return Err(unread("ConfigMap isthmus-mesh", &findings.join("; ")));
            }
            Err(why) if why.contains(NOT_INSTALLED) => None,
            Err(why) => return Err(unread("ConfigMap isthmus-mesh", why)),
        };
        let given = |list: &[(String, String)]| {
            list.iter().find(|(named, _)| *named == context).map(|(_, value)| value.clone())
        };
        let cluster: ClusterId = match (given(names), mesh) {
            (Some(name), Some(mesh)) if mesh.cluster.as_str() != name => bail!(
                "ISM2075 {context} calls itself {}, --name says {name}: its workloads' identities and \
                 others' links depend on that. Fix: leave --name out, or uninstall first",
                mesh.cluster
            ),
            (_, Some(mesh)) => mesh.cluster.clone(),
            (Some(name), None) => named(&context, &name)?,
            (None, None) => named(&context, &context)?,
        };
        let network: Network = match (given(networks), mesh) {
            (Some(network), _) => network
                .parse()
                .context("ISM2075 --network. Fix: use 1 to 63 of a-z, 0-9 and '-'")?,
            (None, Some(mesh)) => mesh.network.clone(),
            (None, None) => cluster.as_str().parse().context("a cluster's id names a network")?,
        };
        let trust_domain: TrustDomain = match mesh {
            Some(mesh) => mesh.trust_domain.clone(),
            None => format!("{cluster}.mesh").parse().context("a cluster's id makes a domain")?,
        };
        let cacerts = match look.cacerts {
            Ok(cacerts) => Some(cacerts),
            Err(why) if why.contains(NO_CACERTS) => None,
            Err(why) => return Err(unread("Secret cacerts", &why)),
        };
        Ok(Self {
            roots: mesh.map(|mesh| mesh.root_certificates.clone()),
            operator,
            cluster,
            network,
            trust_domain,
            uid: look.uid.unwrap_or_default(),
            cacerts,
        })
    }

    /// How lines begin that speak of it.
    pub(super) fn name(&self) -> &str {
        self.cluster.as_str()
    }

    /// Where other clusters find the gateway: `None` where it has got no address in time.
    pub(super) async fn gateway_address(&self, limit: Duration) -> Result<Option<String>> {
        let until = Instant::now() + limit.min(ADDRESS_MAX);
        loop {
            let service = self.operator.service(ROOT_NAMESPACE, "isthmus-eastwestgateway").await?;
            let service = service.unwrap_or_default();
            let external = service.spec.and_then(|spec| spec.external_ips).unwrap_or_default();
            let ingress = service.status.and_then(|status| status.load_balancer?.ingress);
            let given = ingress.into_iter().flatten().filter_map(|it| it.ip.or(it.hostname));
            if let Some(address) = external.into_iter().chain(given).next() {
                return Ok(Some(format!("{address}:15443")));
            }
            if Instant::now() > until {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

fn named(context: &str, name: &str) -> Result<ClusterId> {
    name.parse().with_context(|| {
        format!(
            "ISM2075 context {context:?} is to be cluster {name:?}, which is no cluster id. \
             Fix: pass --name {context}=ID with 1 to 63 of a-z, 0-9 and '-'"
        )
    })
}

/// What would fail later, said first.
fn able(context: &str, look: &Look) -> Result<()> {
    let (major, minor) = KUBERNETES_MIN;
    if let Some(version) = version(&look.version) {
        ensure!(
            version >= KUBERNETES_MIN,
            "ISM2076 {context} runs Kubernetes {}, sidecars need {major}.{minor} (native sidecar \
             containers). Fix: upgrade the cluster",
            look.version
        );
    }
    let denied = match &look.denied {
        Ok(denied) => denied.clone().unwrap_or_default(),
        Err(why) => bail!("ISM2074 {context}: what you may do there could not be read: {why}"),
    };
    ensure!(
        denied.is_empty(),
        "ISM2077 in {context} you may not {}. Fix: use a context with these rights (cluster-admin has \
         them)",
        denied
            .iter()
            .map(|right| format!("{} {}", right.verb, right.resource))
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(())
}

/// `v1.36.3+k3s1` is (1, 36); `None` where nobody can tell.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix('v')?.split('.');
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    Some((digits(parts.next()?).parse().ok()?, digits(parts.next()?).parse().ok()?))
}

/// Two contexts that lead to one cluster, or two clusters of one name, would overwrite each other.
pub(super) fn distinct(sites: &[Site]) -> Result<()> {
    for (place, site) in sites.iter().enumerate() {
        for other in &sites[..place] {
            let (a, b) = (&other.operator.context, &site.operator.context);
            ensure!(
                site.uid.is_empty() || site.uid != other.uid,
                "ISM2015 {a} and {b} are one cluster (kube-system has UID {}). Fix: name each once",
                site.uid
            );
            ensure!(
                site.cluster != other.cluster,
                "ISM2015 {a} and {b} are both called {}. Fix: give one another id, --name {b}=ID",
                site.cluster
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_clouds_write_them() {
        assert_eq!(version("v1.36.3"), Some((1, 36)));
        assert_eq!(version("v1.29.4-eks-036c24b"), Some((1, 29)));
        assert_eq!(version("v1.28+"), Some((1, 28)));
        assert_eq!(version(""), None);
    }

    #[test]
    fn a_context_that_names_no_cluster_says_how_to_name_it() {
        assert_eq!(named("west", "west").unwrap().as_str(), "west");
        let error = named("arn:aws:eks/west", "arn:aws:eks/west").unwrap_err().to_string();
        assert!(error.contains("--name arn:aws:eks/west=ID"), "{error}");
    }
}
