//! Programs of others that judge what the mesh carries: gRPC's interop pair, its xDS client and h2spec,
//! built once from their Go modules and kept in the cache.

use crate::parts::cache;
use crate::parts::go::go;
use anyhow::Result;
use nix::fcntl::{Flock, FlockArg};
use std::path::{Path, PathBuf};

/// The release of grpc-go whose interop programs call and answer.
const GRPC: &str = "v1.85.0";
/// The conformance suite of HTTP/2 servers, 146 cases.
const H2SPEC: &str = "v2.2.1+incompatible";

/// The language of our own programs.
const GO: &str = "1.25.0";

/// The cases that need nothing but a server; the others need Google's credentials, or are about
/// client-side balancing.
pub const INTEROP_CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
];
/// gRPC's interop programs (`google.golang.org/grpc/interop`).
#[derive(Debug, Clone)]
pub struct Interop {
    pub client: PathBuf,
    pub server: PathBuf,
}

/// Builds them the first time, about half a minute.
pub fn interop() -> Result<Interop> {
    let folder = cache()?.join(format!("build/grpc-{GRPC}"));
    let program = |name: &str| {
        let package = format!("google.golang.org/grpc/interop/{name}@{GRPC}");
        install(&folder, name, &package)
    };
    Ok(Interop { client: program("client")?, server: program("server")? })
}

/// A grpc-go client that is its own xDS proxy (`go/xds_client.go`), built the first time.
pub fn xds_client() -> Result<PathBuf> {
    Own {
        name: "xds-client",
        about: "a gRPC client without a proxy",
        source: include_str!("../go/xds_client.go"),
        module: "isthmus/xds-client",
        requires: ("google.golang.org/grpc", GRPC),
    }
    .built()
}

/// A program of our own over a Go module of others.
pub(crate) struct Own {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) source: &'static str,
    /// Its module's path.
    pub(crate) module: &'static str,
    /// Path and version of the other module.
    pub(crate) requires: (&'static str, &'static str),
}

impl Own {
    /// Where it is; built the first time, and anew for another source.
    pub(crate) fn built(&self) -> Result<PathBuf> {
        let Self { name, source, module, requires: (path, version), .. } = self;
        let folder = cache()?.join(format!("build/{name}-{version}"));
        let (program, main) = (folder.join(name), folder.join("main.go"));
        std::fs::create_dir_all(&folder)?;
        // Tests ask for the same one at once.
        let lock = std::fs::File::create(folder.join("lock"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        if program.is_file() && std::fs::read_to_string(&main).is_ok_and(|built| built == *source) {
            return Ok(program);
        }
        eprintln!("building {}", self.about);
        // A build that is cut short leaves no program beside the new source.
        let _ = std::fs::remove_file(&program);
        std::fs::write(main, source)?;
        // From 1.17 on go looks only at modules that are needed, not at all that these name in turn; so it
        // does while it builds (`-mod=mod`), and `go mod tidy` does not.
        let plan = format!("module {module}\n\ngo {GO}\n\nrequire {path} {version}\n");
        std::fs::write(folder.join("go.mod"), plan)?;
        let _ = std::fs::remove_file(folder.join("go.sum"));
        go(|command| {
            command.args(["build", "-o", "new", "."]);
            command.env("GOFLAGS", "-mod=mod").current_dir(&folder);
        })?;
        std::fs::rename(folder.join("new"), &program)?;
        Ok(program)
    }
}

/// Builds it the first time.
pub fn h2spec() -> Result<PathBuf> {
    let folder = cache()?.join(format!("build/h2spec-{H2SPEC}"));
    install(&folder, "h2spec", &format!("github.com/summerwind/h2spec/cmd/h2spec@{H2SPEC}"))
}

fn install(folder: &Path, name: &str, package: &str) -> Result<PathBuf> {
    let program = folder.join(name);
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("building {package}");
    let fresh = folder.join("new");
    std::fs::create_dir_all(&fresh)?;
    go(|command| {
        command.args(["install", package]).env("GOBIN", &fresh).current_dir("/");
    })?;
    // Renamed when whole, so that a killed build leaves nothing that looks finished.
    std::fs::rename(fresh.join(name), &program)?;
    Ok(program)
}
