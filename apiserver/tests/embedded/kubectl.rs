//! The real kubectl, of the Kubernetes whose answers are compared: its everyday verbs.

use crate::server::folder_of;
use crate::support::Running;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home).args(words);
        command
    }

    async fn run(&self, words: &[&str]) -> (bool, String) {
        let mut command = self.command(words);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    async fn good(&self, words: &[&str]) -> String {
        let (good, said) = self.run(words).await;
        assert!(good, "kubectl {words:?}: {said}");
        said
    }
}

struct Streaming(Child);

impl Drop for Streaming {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectls_everyday_verbs_work() {
    let Some(programs) = folder_of(&["kubectl"]) else { return };
    let program = programs.join("kubectl");
    let server = Running::start().await;
    let folder = server.folder.path().to_owned();
    let kubectl = Kubectl { program, kubeconfig: server.kubeconfig(), home: folder.clone() };
    let version = kubectl.good(&["version"]).await;
    assert!(
        version.contains("Client Version: v1.36.3")
            && version.contains("Server Version: v1.36.3+isthmus"),
        "{version}"
    );

    let shop = write(
        &folder,
        "shop.yaml",
        "apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: hello, namespace: shop}
spec:
  selector: {app: hello}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {colour: red}
",
    );
    let said = kubectl.good(&["apply", "--server-side", "-f", &shop]).await;
    assert!(
        said.contains("namespace/shop serverside-applied")
            && said.contains("service/hello serverside-applied"),
        "{said}"
    );
    let unknown = "apiVersion: v1\nkind: Gizmo\nmetadata: {name: a, namespace: shop}\n";
    let unknown = write(&folder, "unknown.yaml", unknown);
    let (good, said) = kubectl.run(&["apply", "-f", &unknown]).await;
    assert!(!good && said.contains("no matches for kind \"Gizmo\" in version \"v1\""), "{said}");
    let said = kubectl.good(&["get", "services", "-n", "shop"]).await;
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].split_whitespace().eq([
            "NAME",
            "TYPE",
            "CLUSTER-IP",
            "EXTERNAL-IP",
            "PORT(S)",
            "AGE"
        ]),
        "{said}"
    );
    assert!(lines[1].starts_with("hello") && lines[1].contains("80/TCP"), "{said}");
    let said = kubectl.good(&["get", "svc,cm", "-A", "-o", "name"]).await;
    assert!(said.contains("service/hello") && said.contains("configmap/settings"), "{said}");
    let said = kubectl.good(&["describe", "service", "hello", "-n", "shop"]).await;
    assert!(
        said.contains("Selector:") && said.contains("app=hello") && said.contains("80/TCP"),
        "{said}"
    );
    let said = kubectl.good(&["describe", "namespace", "shop"]).await;
    assert!(said.contains("Status:") && said.contains("Active"), "{said}");

    // A definition of ours, with its printer columns.
    for (name, yaml) in cluster::api::crd_yaml() {
        let file = write(&folder, &format!("{name}.yaml"), &yaml);
        kubectl.good(&["apply", "--server-side", "-f", &file]).await;
    }
    let said = kubectl.good(&["api-resources", "--api-group=isthmus.dev"]).await;
    assert!(said.contains("clusterlinks") && said.contains("exportedservices"), "{said}");
    let link = write(
        &folder,
        "link.yaml",
        "apiVersion: isthmus.dev/v1alpha1
kind: ClusterLink
metadata: {name: west, namespace: shop}
spec: {}
",
    );
    let (_, said) = kubectl.run(&["apply", "--server-side", "-f", &link]).await;
    assert!(said.contains("serverside-applied") || said.contains("is invalid"), "{said}");
    let said = kubectl.good(&["get", "clusterlinks", "-n", "shop"]).await;
    assert!(said.starts_with("NAME") || said.contains("No resources found"), "{said}");

    // A watch tells what happens while it runs.
    let mut command = kubectl.command(&["get", "cm", "-n", "shop", "-w"]);
    let mut child =
        Streaming(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let out = BufReader::new(child.0.stdout.take().unwrap());
    let (send, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            let _ = send.send(line);
        }
    });
    let heard = async |lines: &mut tokio::sync::mpsc::UnboundedReceiver<String>| {
        let limit = std::time::Duration::from_secs(30);
        tokio::time::timeout(limit, lines.recv())
            .await
            .expect("the watch tells")
            .expect("the watch runs")
    };
    assert!(heard(&mut lines).await.starts_with("NAME"));
    assert!(heard(&mut lines).await.starts_with("settings"));
    let later = write(
        &folder,
        "later.yaml",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: later, namespace: shop}}",
    );
    kubectl.good(&["create", "-f", &later]).await;
    assert!(heard(&mut lines).await.starts_with("later"));
    drop(child);

    // Labels and annotations, and a patch of each kind.
    kubectl.good(&["label", "cm", "settings", "-n", "shop", "tier=front"]).await;
    kubectl.good(&["annotate", "svc", "hello", "-n", "shop", "note=yes"]).await;
    let said = kubectl
        .good(&[
            "get",
            "cm",
            "-n",
            "shop",
            "-l",
            "tier=front",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ])
        .await;
    assert_eq!(said, "settings");
    kubectl
        .good(&[
            "patch",
            "svc",
            "hello",
            "-n",
            "shop",
            "-p",
            r#"{"spec":{"ports":[{"port":80,"name":"web"}]}}"#,
        ])
        .await;
    let said = kubectl
        .good(&["get", "svc", "hello", "-n", "shop", "-o", "jsonpath={.spec.ports[*].name}"])
        .await;
    assert_eq!(said, "web");
    // Who else owns a field is told.
    let red = write(
        &folder,
        "red.yaml",
        "apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {colour: blue}
",
    );
    let (good, said) =
        kubectl.run(&["apply", "--server-side", "--field-manager=other", "-f", &red]).await;
    assert!(!good && said.contains("conflict with \"kubectl\": .data.colour"), "{said}");
    // Client-side apply, twice: by last-applied annotation and strategic merge.
    let plain = write(
        &folder,
        "plain.yaml",
        "apiVersion: v1
kind: ConfigMap
metadata: {name: plain, namespace: shop}
data: {a: b}
",
    );
    kubectl.good(&["apply", "-f", &plain]).await;
    let said = kubectl.good(&["apply", "-f", &plain]).await;
    assert!(said.contains("unchanged"), "{said}");
    let (good, said) = kubectl
        .run(&[
            "apply",
            "--server-side",
            "-f",
            &write(
                &folder,
                "bad.yaml",
                "apiVersion: v1
kind: Service
metadata: {name: bad, namespace: shop}
spec: {ports: [{port: 0}]}
",
            ),
        ])
        .await;
    assert!(
        !good && said.contains("spec.ports[0].port: Invalid value: 0: must be between 1 and 65535"),
        "{said}"
    );
    let (good, said) = kubectl.run(&["get", "unicorns"]).await;
    assert!(
        !good && said.contains("the server doesn't have a resource type \"unicorns\""),
        "{said}"
    );

    // What it sends as protobuf is refused with what to do instead.
    let (good, said) = kubectl.run(&["create", "configmap", "other", "-n", "shop"]).await;
    assert!(!good && said.contains("kubectl create -f"), "{said}");

    let said = kubectl.good(&["delete", "cm", "later", "-n", "shop"]).await;
    assert!(said.contains("deleted"), "{said}");
    kubectl.good(&["delete", "namespace", "shop", "--timeout=30s"]).await;
    let (good, said) = kubectl.run(&["get", "svc", "hello", "-n", "shop"]).await;
    assert!(!good && said.contains("NotFound"), "{said}");
    server.stop().await;
}
