//! `isthmus create-remote-secret`: istioctl's flags and output, a credential that reads exports only.

use crate::Target;
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use cluster::credential::Account;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Call {
    #[command(flatten)]
    target: Target,
    /// Name of this cluster in the mesh; its id in ConfigMap isthmus-mesh if not given, else the
    /// UID of kube-system.
    #[arg(long)]
    name: Option<String>,
    /// Namespace of the account, and of the Secret in the cluster that will hold it.
    #[arg(short, long, default_value = "isthmus-system")]
    namespace: String,
    /// Only `remote` is made: Isthmus has no external control planes.
    #[arg(long = "type", value_enum, default_value_t = Type::Remote)]
    kind: Type,
    /// Only `bearer-token` is made: a plug-in would run a program in the other cluster's controller.
    #[arg(long, value_enum, default_value_t = AuthType::BearerToken)]
    auth_type: AuthType,
    /// Address of this cluster's API server as the other cluster reaches it.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The other cluster runs on this machine: an address of loopback reaches this one.
    #[arg(long)]
    allow_loopback: bool,
    /// Name in the API server's certificate, where the address is not in it.
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
    /// Account to read with.
    #[arg(long, default_value = "isthmus-reader")]
    service_account: String,
    /// Make the account and its rights if they are missing.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    create_service_account: bool,
    /// Name of the Secret; istio-remote-secret-NAME if not given.
    #[arg(long)]
    secret_name: Option<String>,
    /// How long the token is good, in hours; the API server may grant less.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=8760))]
    hours: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Type {
    Remote,
    Config,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AuthType {
    BearerToken,
    Plugin,
}

/// Where an API server's address comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// What says it; `None` for the kubeconfig.
    pub(crate) given: Option<&'a str>,
    /// How to say another.
    pub(crate) hint: &'a str,
}

/// The API server's address as another cluster can use it, or why it cannot.
pub(crate) fn reachable_server(
    server: &str,
    context: &str,
    loopback: bool,
    place: Place<'_>,
) -> Result<String> {
    let Place { given, hint } = place;
    let said = given.map(|by| format!(", as {by} says")).unwrap_or_default();
    let rest = server.strip_prefix("https://").with_context(|| {
        format!("ISM2004 the API server of {context} is {server}{said}: not https. Fix: {hint}")
    })?;
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => authority,
    };
    let host = host.trim_matches(['[', ']']);
    let here = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
    if here && !loopback {
        let what = match given {
            Some(by) => format!("{server}, which {by} gives for {context}, is a loopback address"),
            None => format!("the kubeconfig of {context} points to this machine ({server})"),
        };
        bail!(
            "ISM2004 {what}: other machines cannot reach it. Fix: {hint}; where all clusters run on this \
             machine, pass --allow-loopback"
        );
    }
    Ok(server.to_owned())
}

impl Call {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        if self.kind == Type::Config {
            bail!(
                "ISM2011 --type config is for clusters whose control plane runs elsewhere; Isthmus \
                 runs one in each cluster. Fix: leave --type out"
            );
        }
        if self.auth_type == AuthType::Plugin {
            bail!(
                "ISM2011 --auth-type plugin is refused: Isthmus' controllers run no program that a \
                 Secret names. Fix: leave --auth-type out; the token renews itself"
            );
        }
        let operator = self.target.load().await?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => match operator.describe(&self.namespace).await {
                Ok(described) => described.cluster,
                Err(_) => operator.uid().await?,
            },
        };
        name.parse::<mesh::name::ClusterId>()
            .context("ISM2010 --name. Fix: choose another name")?;
        let server = reachable_server(
            self.server.as_deref().unwrap_or(&operator.server),
            &operator.context,
            self.allow_loopback,
            Place {
                given: self.server.as_ref().map(|_| "--server"),
                hint: "pass --server https://ADDRESS:PORT with an address the other cluster reaches",
            },
        )?;
        let account =
            Account { namespace: self.namespace.clone(), name: self.service_account.clone() };
        let lifetime = Duration::from_secs(u64::from(self.hours) * 3600);
        let minted =
            operator.mint(&self.namespace, &account, self.create_service_account, lifetime).await?;
        let secret_name = self.secret_name.unwrap_or_else(|| format!("istio-remote-secret-{name}"));
        let secret = operator.remote_secret(
            &name,
            &secret_name,
            &self.namespace,
            Some(&server),
            self.tls_server_name.as_deref(),
            &minted,
        );
        put!("{}", secret.yaml());
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, reachable_server};

    #[test]
    fn an_address_of_this_laptop_is_refused() {
        for server in [
            "https://127.0.0.1:41233",
            "https://localhost:6443",
            "https://[::1]:6443",
            "https://0.0.0.0",
            "http://10.0.0.1",
        ] {
            let said = |given| {
                let place = Place { given, hint: "pass --server" };
                reachable_server(server, "kind-west", false, place).unwrap_err().to_string()
            };
            let error = said(None);
            assert!(error.contains("ISM2004") && error.contains("kind-west"), "{server}: {error}");
            let error = said(Some("--server"));
            assert!(!error.contains("kubeconfig") && error.contains("--server "), "{error}");
            let near = server.starts_with("https:");
            assert_eq!(error.contains("loopback address"), near, "{error}");
            assert_eq!(error.contains("pass --allow-loopback"), near, "{error}");
        }
        let place = Place { given: None, hint: "" };
        for server in
            ["https://10.0.0.2:6443", "https://api.example.com", "https://[2001:db8::1]:6443/x"]
        {
            assert_eq!(reachable_server(server, "west", false, place).unwrap(), server);
        }
        let near = "https://127.2.0.1:6443";
        assert_eq!(reachable_server(near, "west", true, place).unwrap(), near);
    }
}
