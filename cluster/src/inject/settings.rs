//! What injection needs to know of its cluster: ConfigMap `isthmus-mesh`, and `isthmus-injection`
//! beside it. The webhook and `isthmus inject` read the same two.

use super::NamespaceLabels;
use crate::parse::mesh_config;
use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{Api, Client};
use mesh::inventory::MeshConfig;
use mesh::name::{ClusterId, Network, TrustDomain};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Name of the ConfigMap with [`Settings`]' own keys, in the root namespace.
pub const CONFIG_MAP: &str = "isthmus-injection";
const KEYS: [&str; 6] =
    ["image", "imagePullPolicy", "controlPlane", "cpuRequest", "memoryRequest", "concurrency"];
/// Most threads that a sidecar may be told to have.
const THREADS_MAX: u16 = 1_024;
/// Longest value of a key, bytes.
const VALUE_MAX: usize = 1_024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The image of both containers; its entry point is `isthmus`.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`; Kubernetes' own choice where nothing is said.
    pub image_pull_policy: Option<String>,
    /// `HOST:PORT` of the cluster's control plane.
    pub control_plane: String,
    /// Kubernetes quantities, what each sidecar asks of its node.
    pub cpu_request: String,
    pub memory_request: String,
    /// Threads of each sidecar, 0 for one per processor; its own choice where nothing is said.
    pub concurrency: Option<u16>,
    pub cluster: ClusterId,
    pub network: Network,
    pub trust_domain: TrustDomain,
    /// PEM; public, and a pod's own namespace has no copy of it.
    pub root_certificates: String,
    /// Ranges of the mesh's virtual addresses.
    pub vip_ranges: Vec<String>,
}

impl Settings {
    /// From `data` of [`CONFIG_MAP`] and what the cluster says of itself.
    ///
    /// # Errors
    /// ISM2701, a sentence with the key that is wrong.
    pub fn new(
        data: &BTreeMap<String, String>,
        mesh: &MeshConfig,
        root_namespace: &str,
    ) -> Result<Self> {
        let wrong = |key: &str, problem: &str, fix: &str| {
            anyhow::anyhow!(
                "ISM2701 ConfigMap {root_namespace}/{CONFIG_MAP} data.{key}: {problem}, so no pod can be \
                 injected. Fix: {fix}"
            )
        };
        let said =
            |key: &str| data.get(key).map(|text| text.trim()).filter(|text| !text.is_empty());
        for (key, value) in data {
            if !KEYS.contains(&key.as_str()) {
                let known = KEYS.join(", ");
                return Err(wrong(key, "this key is unknown", &format!("known are {known}")));
            }
            if value.len() > VALUE_MAX || value.trim().contains(char::is_whitespace) {
                return Err(wrong(key, "it is no single word", "write one value"));
            }
        }
        let image = said("image").ok_or_else(|| {
            wrong("image", "it is missing", "name the image of `isthmus` that this cluster runs")
        })?;
        let pull = said("imagePullPolicy");
        if pull.is_some_and(|policy| !["Always", "IfNotPresent", "Never"].contains(&policy)) {
            return Err(wrong("imagePullPolicy", "it is unknown", "Always, IfNotPresent or Never"));
        }
        let request = |key: &str, default: &str| match said(key) {
            Some(text) if !is_quantity(text) => {
                Err(wrong(key, &format!("{text:?} is no quantity"), &format!("like {default}")))
            }
            text => Ok(text.unwrap_or(default).to_owned()),
        };
        let concurrency = said("concurrency").map(|text| {
            threads(text).ok_or_else(|| {
                let problem = format!("{text:?} is no number of threads");
                wrong("concurrency", &problem, "like \"2\", or \"0\" for one per processor")
            })
        });
        let place = said("controlPlane").map_or_else(
            || format!("isthmus-control-plane.{root_namespace}.svc:15012"),
            str::to_owned,
        );
        let port = place.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() {
            return Err(wrong(
                "controlPlane",
                &format!("{place:?} is not HOST:PORT"),
                "correct it",
            ));
        }
        ensure!(
            mesh.root_certificates.contains("-----BEGIN CERTIFICATE-----"),
            "ISM2702 ConfigMap {root_namespace}/isthmus-mesh has no root certificate, without which a \
             sidecar trusts nobody. Fix: put the mesh's roots into data.rootCertificates"
        );
        Ok(Self {
            image: image.to_owned(),
            image_pull_policy: pull.map(str::to_owned),
            control_plane: place,
            cpu_request: request("cpuRequest", "10m")?,
            memory_request: request("memoryRequest", "48Mi")?,
            concurrency: concurrency.transpose()?,
            cluster: mesh.cluster.clone(),
            network: mesh.network.clone(),
            trust_domain: mesh.trust_domain.clone(),
            root_certificates: mesh.root_certificates.clone(),
            vip_ranges: vec![mesh.vip_range.to_string(), mesh.vip_range_v6.to_string()],
        })
    }
}

impl Settings {
    /// A container's `resources.requests`.
    pub(super) fn requests(&self) -> Map<String, Value> {
        let of = [("cpu", &self.cpu_request), ("memory", &self.memory_request)];
        of.map(|(resource, quantity)| (resource.to_owned(), quantity.clone().into()))
            .into_iter()
            .collect()
    }
}

/// How many threads, as people write it.
pub(super) fn threads(text: &str) -> Option<u16> {
    text.parse().ok().filter(|count| *count <= THREADS_MAX)
}

/// A Kubernetes quantity as people write one: digits, a point, a suffix.
pub(super) fn is_quantity(text: &str) -> bool {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[number.len()..];
    let digits = number.split('.').collect::<Vec<_>>();
    digits.len() <= 2
        && digits.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        && ["", "m", "k", "M", "G", "Ki", "Mi", "Gi"].contains(&suffix)
}

/// Reads [`CONFIG_MAP`]; `mesh` as the cluster's watch has it, else read from its ConfigMap.
pub async fn read_settings(
    client: &Client,
    root_namespace: &str,
    mesh: Option<&MeshConfig>,
) -> Result<Settings> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), root_namespace);
    let read = async |name: &str| -> Result<ConfigMap> {
        let found = maps.get_opt(name).await.with_context(|| {
            format!(
                "ISM2703 ConfigMap {root_namespace}/{name} cannot be read. \
                 Fix: see that the API server answers and that this account may get configmaps there"
            )
        })?;
        found.with_context(|| {
            format!(
                "ISM2704 there is no ConfigMap {root_namespace}/{name}, so nothing is known to inject. \
                 Fix: `isthmus install`, or write it with the key image"
            )
        })
    };
    let data = read(CONFIG_MAP).await?.data.unwrap_or_default();
    if let Some(mesh) = mesh {
        return Settings::new(&data, mesh, root_namespace);
    }
    let parsed = mesh_config::parse(&read(mesh_config::NAME).await?);
    let Some(mesh) = parsed.value else {
        let findings = parsed.findings.iter().map(ToString::to_string).collect::<Vec<_>>();
        bail!("{}", findings.join("\n"));
    };
    Settings::new(&data, &mesh, root_namespace)
}

/// The labels of a namespace; `None` where there is none of that name.
pub async fn namespace_labels(client: &Client, name: &str) -> Result<Option<NamespaceLabels>> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = namespaces.get_opt(name).await.with_context(|| {
        format!(
            "ISM2705 the labels of Namespace {name} cannot be read. \
             Fix: see that the API server answers and that this account may get namespaces"
        )
    })?;
    Ok(found.map(|namespace| namespace.metadata.labels.unwrap_or_default()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn mesh() -> MeshConfig {
        MeshConfig {
            root_certificates: "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"
                .into(),
            ..MeshConfig::new(
                "east".parse().unwrap(),
                "net-east".parse().unwrap(),
                "east.mesh".parse().unwrap(),
            )
        }
    }

    /// Of a mesh that says this beside its image.
    pub(crate) fn settings(also: &str) -> Settings {
        read(&format!("{{image: i, {also}}}")).unwrap()
    }

    fn read(data: &str) -> Result<Settings> {
        Settings::new(&serde_saphyr::from_str(data).unwrap(), &mesh(), "isthmus-system")
    }

    #[test]
    fn an_image_is_all_that_must_be_said() {
        let settings = read("{image: 'localhost:5000/isthmus:1'}").unwrap();
        assert_eq!(settings.control_plane, "isthmus-control-plane.isthmus-system.svc:15012");
        assert_eq!(
            (settings.cpu_request.as_str(), settings.memory_request.as_str()),
            ("10m", "48Mi")
        );
        assert_eq!(settings.vip_ranges, ["240.240.0.0/16", "2001:2::/48"]);
        let all = "{image: i, imagePullPolicy: Never, controlPlane: 'cp:1', cpuRequest: '0.5', \
                   memoryRequest: 1Gi, concurrency: '8'}";
        assert_eq!(read(all).unwrap().cpu_request, "0.5");
        assert_eq!((settings.concurrency, read(all).unwrap().concurrency), (None, Some(8)));
    }

    #[test]
    fn each_wrong_key_is_named() {
        for (data, key) in [
            ("{}", "data.image: it is missing"),
            ("{image: a b}", "data.image"),
            ("{image: i, imagePullPolicy: never}", "data.imagePullPolicy"),
            ("{image: i, controlPlane: cp}", "data.controlPlane"),
            ("{image: i, cpuRequest: lots}", "data.cpuRequest"),
            ("{image: i, concurrency: all}", "data.concurrency"),
            ("{image: i, concurrency: '1025'}", "data.concurrency"),
            ("{image: i, memoryRequest: '.5Gi'}", "data.memoryRequest"),
            ("{image: i, imaje: j}", "data.imaje"),
        ] {
            let problem = read(data).unwrap_err().to_string();
            assert!(problem.starts_with("ISM2701 ") && problem.contains(key), "{data}: {problem}");
        }
        let bare = MeshConfig { root_certificates: String::new(), ..mesh() };
        let data = [("image".to_owned(), "i".to_owned())].into();
        let problem = Settings::new(&data, &bare, "isthmus-system").unwrap_err().to_string();
        assert!(problem.starts_with("ISM2702 "), "{problem}");
    }
}
