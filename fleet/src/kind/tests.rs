//! The driver against a docker and a kind that only note what they are asked: no Docker is needed.

use super::*;
use crate::nodes::SITES;
use std::path::Path;
use std::time::Instant;

/// A folder with both programs, and a fleet's home below it.
struct Rig {
    folder: tempfile::TempDir,
    tools: Tools,
    home: Home,
    images: Vec<PathBuf>,
}

const PLANS: [Plan; 3] = [
    Plan { site: SITES[0], config: "east's" },
    Plan { site: SITES[1], config: "west's" },
    Plan { site: SITES[2], config: "north's" },
];

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fakes = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kind/fake");
        for name in ["docker", "kind"] {
            std::os::unix::fs::symlink(fakes.join(name), folder.path().join(name)).unwrap();
        }
        let limits = Limits {
            answer: Duration::from_secs(10),
            create: Duration::from_secs(20),
            load: Duration::from_secs(10),
            delete: Duration::from_secs(10),
        };
        let tools = Tools::find(folder.path().as_os_str(), limits).unwrap();
        let home = Home::at("test", &folder.path().join("home")).unwrap();
        let images = ["hello.tar", "gateway.tar"].map(|name| folder.path().join(name)).to_vec();
        for image in &images {
            std::fs::write(image, "").unwrap();
        }
        Self { folder, tools, home, images }
    }

    fn fleet(&self, keep: bool) -> Fleet<'_> {
        Fleet { tools: &self.tools, home: &self.home, plans: &PLANS, keep }
    }

    fn tell(&self, file: &str, text: &str) {
        std::fs::write(self.folder.path().join(file), text).unwrap();
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(file)).unwrap_or_default()
    }

    /// What was asked so far, with the run's own folder left out.
    fn calls(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        self.read("calls").replace(&folder, "").lines().map(str::to_owned).collect()
    }

    /// Makes the clusters and takes them down again, as a run without scenarios.
    async fn run(&self, end: impl Future<Output = anyhow::Error>) -> Result<Vec<Made>> {
        let fleet = self.fleet(false);
        fleet.clean().await?;
        fleet.whatever_comes(fleet.make(&self.images, |_| ()), end).await
    }
}

fn created(name: &str) -> String {
    let short = name.trim_start_matches("test-");
    format!(
        "kind create cluster --name {name} --config home/{short}.yaml --kubeconfig \
         home/{short}.kubeconfig --wait 180s"
    )
}

const DELETED: &str = "kind delete clusters --kubeconfig home/deleted.kubeconfig test-east test-west \
                       test-north";

#[tokio::test]
async fn the_first_cluster_is_whole_before_the_others_and_all_are_deleted_at_the_end() {
    let rig = Rig::new();
    rig.tools.answering().await.unwrap();
    let made = rig.run(std::future::pending()).await.unwrap();
    let names: Vec<&str> = made.iter().map(|made| made.name.as_str()).collect();
    assert_eq!(names, ["test-east", "test-west", "test-north"]);
    let calls = rig.calls();
    let whole = |name: &str| {
        let inspect = format!("docker inspect --format {ASKED} {name}-control-plane");
        [
            created(name),
            format!("kind load image-archive hello.tar --name {name}"),
            format!("kind load image-archive gateway.tar --name {name}"),
            format!("kind get kubeconfig --name {name}"),
            inspect,
        ]
    };
    assert_eq!(calls[0], "docker version --format {{.Server.Version}}");
    assert_eq!(calls[1], "kind get clusters");
    assert_eq!(calls[2..7], whole("test-east"));
    // The others' calls, in whatever order among each other.
    let (others, end) = calls[7..].split_at(10);
    for name in ["test-west", "test-north"] {
        let own: Vec<_> = others.iter().filter(|call| call.contains(name)).cloned().collect();
        assert_eq!(own, whole(name));
    }
    assert_eq!(end, [DELETED, "kind get clusters"]);
    assert_eq!(rig.read("clusters"), "");
    assert!(!rig.home.run.exists(), "kubeconfigs and images are gone with the clusters");
}

#[tokio::test]
async fn where_the_second_cannot_be_made_all_are_deleted_and_kind_s_own_words_are_told() {
    let rig = Rig::new();
    rig.tell("broken", "test-west");
    let error = rig.run(std::future::pending()).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("cluster west: `kind create cluster --name test-west"), "{error}");
    assert!(error.contains("exit status: 1: ERROR: failed to create cluster: no space"), "{error}");
    let calls = rig.calls();
    // The third, which was being made, is not forgotten.
    assert!(calls.contains(&created("test-north")), "{calls:#?}");
    assert_eq!(calls[calls.len() - 2..], [DELETED, "kind get clusters"]);
    assert_eq!(rig.read("clusters"), "");
}

#[tokio::test]
async fn where_the_first_cannot_be_made_the_others_are_not_begun() {
    let rig = Rig::new();
    rig.tell("broken", "test-east");
    assert!(rig.run(std::future::pending()).await.is_err());
    let wanted = ["kind get clusters", &created("test-east"), DELETED, "kind get clusters"]
        .map(str::to_owned);
    assert_eq!(rig.calls(), wanted);
}

#[tokio::test]
async fn ctrl_c_ends_what_is_being_made_and_deletes_it() {
    let rig = Rig::new();
    rig.tell("slow", "test-west");
    let begun = Instant::now();
    let end = async {
        while !rig.read("clusters").contains("test-west") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::anyhow!("interrupted")
    };
    let error = rig.run(end).await.unwrap_err();
    assert_eq!(error.to_string(), "interrupted");
    assert!(begun.elapsed() < Duration::from_secs(15), "its time-out was waited for");
    assert_eq!(rig.calls().last_chunk(), Some(&[DELETED, "kind get clusters"].map(str::to_owned)));
    assert_eq!(rig.read("clusters"), "");
}

#[tokio::test]
async fn a_cluster_that_takes_too_long_is_given_up_and_deleted() {
    let mut rig = Rig::new();
    rig.tell("slow", "test-east");
    rig.tools.limits.create = Duration::from_millis(500);
    let error = format!("{:#}", rig.run(std::future::pending()).await.unwrap_err());
    assert!(error.contains("`kind create cluster --name test-east"), "{error}");
    assert!(error.ends_with("did not end in 500ms, and was ended"), "{error}");
    assert_eq!(rig.read("clusters"), "");
}

#[test]
fn without_docker_or_kind_it_says_which_and_what_else_there_is() {
    let empty = tempfile::tempdir().unwrap();
    let error = Tools::find(empty.path().as_os_str(), Limits::default()).unwrap_err().to_string();
    let wanted = "`docker` is not on PATH, and --driver kind makes its clusters with it. Fix: install \
                  docker, or use --driver nodes, which needs neither Docker nor kind";
    assert_eq!(error, wanted);
    std::fs::write(empty.path().join("docker"), "").unwrap();
    let error = Tools::find(empty.path().as_os_str(), Limits::default()).unwrap_err().to_string();
    assert!(error.starts_with("`kind` is not on PATH"), "{error}");
}

#[tokio::test]
async fn a_docker_without_daemon_and_one_that_never_answers_are_told_apart() {
    let mut rig = Rig::new();
    rig.tell("dead", "");
    let error = format!("{:#}", rig.tools.answering().await.unwrap_err());
    assert!(error.starts_with("--driver kind needs a Docker that answers. Fix: "), "{error}");
    assert!(error.contains("Cannot connect to the Docker daemon"), "{error}");
    rig.tell("silent", "");
    rig.tools.limits.answer = Duration::from_millis(300);
    let begun = Instant::now();
    let error = format!("{:#}", rig.tools.answering().await.unwrap_err());
    assert!(error.contains("did not end in 300ms, and was ended"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "it was waited for");
}

#[tokio::test]
async fn what_a_crash_left_is_deleted_and_what_is_others_stays() {
    let rig = Rig::new();
    rig.tell("clusters", "others\ntest-west\ntest-west-too\n");
    rig.fleet(false).clean().await.unwrap();
    assert_eq!(rig.read("clusters"), "others\ntest-west-too\n");
    assert_eq!(rig.calls(), ["kind get clusters", DELETED, "kind get clusters"]);
}

#[tokio::test]
async fn a_janitor_deletes_what_its_run_could_not() {
    let rig = Rig::new();
    let fleet = rig.fleet(false);
    fleet.make(&rig.images, |_| ()).await.unwrap();
    fleet.sweep().await.unwrap();
    assert_eq!(rig.read("clusters"), "");
    assert!(!rig.home.run.exists());
}

#[tokio::test]
async fn clusters_that_were_to_stay_are_kept_and_not_taken_for_a_crash_s() {
    let rig = Rig::new();
    let fleet = rig.fleet(true);
    let made = fleet.make(&rig.images, |_| ());
    fleet.whatever_comes(made, std::future::pending()).await.unwrap();
    let calls = rig.calls();
    assert!(!calls.iter().any(|call| call.contains("delete")), "{calls:#?}");
    let error = fleet.clean().await.unwrap_err().to_string();
    assert!(error.contains("kind delete clusters test-east test-west test-north"), "{error}");
    // Nor does the janitor of the run that was refused.
    fleet.sweep().await.unwrap();
    assert_eq!(rig.read("clusters").lines().count(), 3);
    // Deleted by hand, they are in nobody's way.
    rig.tell("clusters", "");
    fleet.clean().await.unwrap();
    assert!(!rig.home.kept());
}

#[tokio::test]
async fn the_operator_s_kubeconfig_has_the_clusters_names_and_addresses_that_all_reach() {
    let rig = Rig::new();
    let made = rig.run(std::future::pending()).await.unwrap();
    let text = serde_saphyr::to_string(&operator(&made).unwrap()).unwrap();
    let said: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let names = |list: &str| -> Vec<String> {
        let all = said[list].as_array().unwrap();
        all.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    for list in ["clusters", "users", "contexts"] {
        assert_eq!(names(list), ["east", "west", "north"], "{text}");
    }
    assert_eq!(said["kind"], "Config");
    assert_eq!(said["current-context"], "east");
    let west = &said["clusters"][1]["cluster"];
    assert_eq!(west["server"], "https://172.18.0.3:6443");
    assert_eq!(west["certificate-authority-data"], "Zm9v");
    assert_eq!(
        said["users"][1]["user"]["client-key-data"], "a2V5",
        "what kubectl needs is written"
    );
    assert_eq!(said["contexts"][1]["context"]["user"], "west");
}
