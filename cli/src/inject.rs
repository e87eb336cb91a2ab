//! `isthmus inject`: what the webhook would make of a file of manifests.

use crate::output;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use cluster::inject::{Documents, NamespaceLabels, TEXT_MAX, namespace_labels, read_settings};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Manifests, YAML or JSON; `-` reads standard input.
    #[arg(short, long, value_name = "FILE")]
    filename: PathBuf,
    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    target: crate::Target,
    #[arg(long, default_value = "isthmus-system")]
    root_namespace: String,
    /// Take every namespace to be labelled istio-injection=enabled, whatever the cluster says.
    #[arg(long)]
    force: bool,
    /// Say also of each injected pod what was added; why others are left alone is always said.
    #[arg(long)]
    explain: bool,
}

impl Call {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let documents = Documents::read(&self.text()?)?;
        let cluster = self.target.load().await?;
        let settings = read_settings(&cluster.client, &self.root_namespace, None)
            .await
            .with_context(|| format!("in {} ({})", cluster.context, cluster.server))?;
        let mut labels = BTreeMap::<String, NamespaceLabels>::new();
        for name in documents.namespaces(&self.namespace) {
            let mut found = namespace_labels(&cluster.client, &name).await?.unwrap_or_default();
            if self.force {
                found.insert("istio-injection".into(), "enabled".into());
            }
            labels.insert(name, found);
        }
        let done = documents.inject(&labels, &self.namespace, &settings);
        for outcome in &done.outcomes {
            let word = if outcome.injected { "injected" } else { "left alone" };
            if self.explain && outcome.injected && outcome.said.is_empty() {
                note!("{}: injected, image {}", outcome.object, settings.image);
            }
            for said in &outcome.said {
                note!("{}: {word}: {said}", outcome.object);
            }
        }
        output::print(done.text.as_bytes());
        Ok(ExitCode::SUCCESS)
    }

    fn text(&self) -> Result<String> {
        let name = self.filename.display();
        let unread = || {
            format!(
                "ISM2070 cannot read {name}. Fix: name a file of YAML or JSON, or - for standard input"
            )
        };
        let limit = u64::try_from(TEXT_MAX).unwrap_or(u64::MAX) + 1;
        let mut text = String::new();
        let read = if self.filename.as_os_str() == "-" {
            std::io::stdin().lock().take(limit).read_to_string(&mut text)
        } else {
            let file = std::fs::File::open(&self.filename).with_context(unread)?;
            file.take(limit).read_to_string(&mut text)
        };
        read.with_context(unread)?;
        ensure!(
            text.len() <= TEXT_MAX,
            "ISM2082 {name} has more than {TEXT_MAX} bytes. Fix: split it"
        );
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use cluster::inject::{CONFIGURATION, Injection, NamespaceLabels, Settings, apply, inject};
    use mesh::inventory::MeshConfig;
    use serde_json::{Value, json};

    /// What the kubelet does with a variable's value (`forked/golang/expansion`).
    fn expanded(text: &str, known: &[(&str, &str)]) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some((name, after)) =
                rest.strip_prefix('(').and_then(|r| r.split_once(')'))
            {
                let value = known.iter().find(|(known, _)| *known == name);
                out.push_str(value.map_or_else(|| panic!("{name} is not set"), |(_, value)| value));
                rest = after;
            } else {
                out.push('$');
            }
        }
        out + rest
    }

    /// Both ends of the variable's contract, which two rooms write and read.
    #[test]
    fn a_sidecar_understands_what_injection_tells_it() {
        let mesh = MeshConfig {
            root_certificates: "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"
                .into(),
            ..MeshConfig::new(
                "east".parse().unwrap(),
                "net-east".parse().unwrap(),
                "east.mesh".parse().unwrap(),
            )
        };
        let data = [("image".to_owned(), "isthmus:test".to_owned())].into();
        let settings = Settings::new(&data, &mesh, "isthmus-system").unwrap();
        let annotations = json!({"proxy.istio.io/config": "concurrency: 3"});
        let metadata = json!({"name": "p", "annotations": annotations});
        let pod = json!({"metadata": metadata, "spec": {"containers": [{
            "name": "app",
            "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"path": "/a$b", "port": "http", "scheme": "HTTPS",
                "httpHeaders": [{"name": "X", "value": "$(HOME) $$ 100%"}]}, "timeoutSeconds": 3},
            "readinessProbe": {"tcpSocket": {"port": 9000}},
            "startupProbe": {"grpc": {"port": 9001, "service": "db"}},
        }]}});
        let enabled = NamespaceLabels::from([("istio-injection".into(), "enabled".into())]);
        let Injection::Inject { patch, .. } = inject(&pod, &enabled, &settings) else { panic!() };
        let injected = apply(&pod, &patch);
        let sidecar = &injected["spec"]["initContainers"][1];
        let env = sidecar["env"].as_array().unwrap();
        let is_ours = |entry: &&Value| entry["name"] == CONFIGURATION;
        let text = env.iter().find(is_ours).unwrap()["value"].as_str().unwrap();
        let known = [
            ("POD_NAME", "1234"),
            ("POD_NAMESPACE", "shop"),
            ("SERVICE_ACCOUNT", "hello"),
            ("POD_IPS", "10.244.0.5,fd00::5"),
        ];
        let text = expanded(text, &known);
        let config: sidecar::Config = serde_saphyr::from_str(&text).unwrap();
        config.check().unwrap();
        assert_eq!((config.pod.as_str(), config.namespace.as_str()), ("1234", "shop"));
        assert_eq!((config.account.as_str(), config.pod_addresses.len()), ("hello", 2));
        assert_eq!(config.concurrency, Some(3));
        assert_eq!(
            config.control_plane.unwrap().to_string(),
            "isthmus-control-plane.isthmus-system.svc:15012"
        );
        let live = config.probes["/app-health/app/livez"].http_get.as_ref().unwrap();
        assert_eq!((live.path.as_str(), live.port), ("/a$b", 8080));
        assert_eq!(live.http_headers[0].value, "$(HOME) $$ 100%");
        assert_eq!(config.probes["/app-health/app/readyz"].tcp_socket.as_ref().unwrap().port, 9000);
        assert_eq!(config.probes["/app-health/app/startupz"].grpc.as_ref().unwrap().service, "db");
        assert!(config.dns.unwrap().upstreams.is_none(), "the pod's own nameservers");
        // The arguments are those of the programs' own verbs.
        use clap::Parser as _;
        for container in 0..2 {
            let args = injected["spec"]["initContainers"][container]["args"].as_array().unwrap();
            let words = args.iter().map(|word| word.as_str().unwrap());
            crate::Cli::try_parse_from(["isthmus"].into_iter().chain(words)).unwrap();
        }
    }
}
