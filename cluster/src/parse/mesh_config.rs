//! ConfigMap `isthmus-mesh`: how a cluster describes itself, to its own proxies and to the others.

use super::{Notes, Parsed};
use k8s_openapi::api::core::v1::ConfigMap;
use mesh::inventory::{MeshConfig, VIP_RANGE, VIP_RANGE_V6};
use std::fmt::Display;
use std::str::FromStr;

/// Name of the ConfigMap, in the root namespace.
pub const NAME: &str = "isthmus-mesh";

const KEYS: [&str; 7] = [
    "cluster",
    "network",
    "trustDomain",
    "vipRange",
    "vipRangeV6",
    "clusterLocal",
    "rootCertificates",
];

/// All of it or nothing: half a description of a cluster is a wrong one.
pub fn parse(map: &ConfigMap) -> Parsed<MeshConfig> {
    let mut notes = Notes::of("ConfigMap", &map.metadata);
    let data = map.data.clone().unwrap_or_default();
    let cluster = required(&data, "cluster", &mut notes);
    let network = required(&data, "network", &mut notes);
    let trust_domain = required(&data, "trustDomain", &mut notes);
    let vip_range = optional(&data, "vipRange", VIP_RANGE, &mut notes);
    let vip_range_v6 = optional(&data, "vipRangeV6", VIP_RANGE_V6, &mut notes);
    let root_certificates = data.get("rootCertificates").cloned().unwrap_or_default();
    if root_certificates.contains("PRIVATE KEY") {
        notes.refuse(
            3022,
            "data.rootCertificates",
            "it holds a private key, which every linked cluster could read; nothing of this object \
             is used.",
            "put certificates only there, and replace that key: it is no secret any more.",
        );
        return notes.done(None);
    }
    if !root_certificates.contains("-----BEGIN CERTIFICATE-----") {
        notes.warn(
            3021,
            "data.rootCertificates",
            "it holds no certificate, so no other cluster can tell whether it shares our root.",
            "put the mesh's root certificates there as PEM; isthmus trust issue prints them.",
        );
    }
    let merge_cluster_local = match data.get("clusterLocal").map(String::as_str) {
        Some("merge") => true,
        None | Some("") => false,
        Some(other) => {
            notes.warn(
                3021,
                "data.clusterLocal",
                format!("{other:?} is unknown, so other clusters join our local names only where both export them."),
                "write merge, or remove the key.",
            );
            false
        }
    };
    for key in data.keys().filter(|key| !KEYS.contains(&key.as_str())) {
        let known = KEYS.join(", ");
        notes.warn(
            3021,
            &format!("data.{key}"),
            "this key is unknown and not used.",
            &format!("correct its name; known are {known}."),
        );
    }
    let (Some(cluster), Some(network), Some(trust_domain), Some(vip_range), Some(vip_range_v6)) =
        (cluster, network, trust_domain, vip_range, vip_range_v6)
    else {
        return notes.done(None);
    };
    notes.done(Some(MeshConfig {
        cluster,
        network,
        trust_domain,
        vip_range,
        vip_range_v6,
        root_certificates,
        merge_cluster_local,
    }))
}

type Data = std::collections::BTreeMap<String, String>;

fn required<T: FromStr<Err: Display>>(data: &Data, key: &str, notes: &mut Notes) -> Option<T> {
    let Some(text) = data.get(key) else {
        notes.refuse(
            3020,
            &format!("data.{key}"),
            "it is missing, and nothing of this object is used without it.",
            "write this cluster's own value there.",
        );
        return None;
    };
    value(text, key, notes)
}

fn optional<T: FromStr<Err: Display>>(
    data: &Data,
    key: &str,
    default: T,
    notes: &mut Notes,
) -> Option<T> {
    data.get(key).map_or(Some(default), |text| value(text, key, notes))
}

fn value<T: FromStr<Err: Display>>(text: &str, key: &str, notes: &mut Notes) -> Option<T> {
    match text.trim().parse() {
        Ok(value) => Some(value),
        Err(error) => {
            notes.refuse(
                3020,
                &format!("data.{key}"),
                format!(
                    "it is not what it should be, and nothing of this object is used: {error}."
                ),
                "correct it; clusters that are linked keep what they knew until then.",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::{object, show};
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(data: &str, expected: Expect) {
        let map = format!(
            "{{metadata: {{namespace: isthmus-system, name: isthmus-mesh}}, data: {{{data}}}}}"
        );
        expected.assert_eq(&show(&parse(&object(&map))));
    }

    #[test]
    fn defaults_stand_for_what_is_not_said() {
        check(
            "cluster: east, network: net-east, trustDomain: east.mesh, \
             rootCertificates: '-----BEGIN CERTIFICATE-----'",
            expect![[r#"
                cluster: east
                network: net-east
                trust_domain: east.mesh
                vip_range: 240.240.0.0/16
                vip_range_v6: 2001:2::/48
                root_certificates: -----BEGIN CERTIFICATE-----
                merge_cluster_local: false
            "#]],
        );
    }

    #[test]
    fn everything_may_be_said() {
        check(
            "cluster: east, network: net-east, trustDomain: east.mesh, vipRange: 10.200.0.0/16, \
             vipRangeV6: 'fd00:1::/48', clusterLocal: merge, \
             rootCertificates: '-----BEGIN CERTIFICATE-----'",
            expect![[r#"
                cluster: east
                network: net-east
                trust_domain: east.mesh
                vip_range: 10.200.0.0/16
                vip_range_v6: fd00:1::/48
                root_certificates: -----BEGIN CERTIFICATE-----
                merge_cluster_local: true
            "#]],
        );
    }

    #[test]
    fn each_bad_value_is_named() {
        check(
            "cluster: East_1, network: net, vipRange: 240.240.0.0/99, clusterLocal: yes, colour: red",
            expect![[r#"
                nothing
                Refused ISM3020 ConfigMap isthmus-system/isthmus-mesh data.cluster: it is not what it should be, and nothing of this object is used: a cluster id is an RFC 1123 label; "East_1" is not: only a-z, 0-9 and '-' are allowed. Fix: correct it; clusters that are linked keep what they knew until then.
                Refused ISM3020 ConfigMap isthmus-system/isthmus-mesh data.trustDomain: it is missing, and nothing of this object is used without it. Fix: write this cluster's own value there.
                Refused ISM3020 ConfigMap isthmus-system/isthmus-mesh data.vipRange: it is not what it should be, and nothing of this object is used: invalid IP address syntax. Fix: correct it; clusters that are linked keep what they knew until then.
                Warning ISM3021 ConfigMap isthmus-system/isthmus-mesh data.rootCertificates: it holds no certificate, so no other cluster can tell whether it shares our root. Fix: put the mesh's root certificates there as PEM; isthmus trust issue prints them.
                Warning ISM3021 ConfigMap isthmus-system/isthmus-mesh data.clusterLocal: "yes" is unknown, so other clusters join our local names only where both export them. Fix: write merge, or remove the key.
                Warning ISM3021 ConfigMap isthmus-system/isthmus-mesh data.colour: this key is unknown and not used. Fix: correct its name; known are cluster, network, trustDomain, vipRange, vipRangeV6, clusterLocal, rootCertificates.
            "#]],
        );
    }

    #[test]
    fn a_private_key_is_not_published() {
        check(
            "cluster: east, network: n, trustDomain: d, rootCertificates: '-----BEGIN PRIVATE KEY-----'",
            expect![[r#"
                nothing
                Refused ISM3022 ConfigMap isthmus-system/isthmus-mesh data.rootCertificates: it holds a private key, which every linked cluster could read; nothing of this object is used. Fix: put certificates only there, and replace that key: it is no secret any more.
            "#]],
        );
    }
}
