//! The name table.

use super::wire::{Wrong, wrong};
use crate::nds::{NameInfo, NameTable, TYPE_URL};
use envoy_types::pb::google::protobuf::Any;
use mesh::zone::Zone;
use prost::Message;
use std::net::IpAddr;

pub(super) fn pack(zone: &Zone) -> Any {
    Any { type_url: TYPE_URL.to_owned(), value: encode(zone).encode_to_vec() }
}

pub(super) fn unpack(any: &Any) -> Result<Zone, Wrong> {
    let table = NameTable::decode(any.value.as_slice())
        .map_err(|error| wrong("value", format!("is no NameTable: {error}")))?;
    decode(&table)
}

fn encode(zone: &Zone) -> NameTable {
    let info = |ips: &Vec<IpAddr>| NameInfo {
        ips: ips.iter().map(IpAddr::to_string).collect(),
        ..Default::default()
    };
    NameTable {
        table: zone.names.iter().map(|(host, ips)| (host.to_string(), info(ips))).collect(),
        complete: zone.complete,
        namespaces: zone.namespaces.iter().cloned().collect(),
    }
}

fn decode(table: &NameTable) -> Result<Zone, Wrong> {
    let mut zone = Zone { complete: table.complete, ..Default::default() };
    for (host, info) in &table.table {
        let field = format!("table[{host:?}]");
        let name =
            host.parse().map_err(|error| wrong(&field, format!("is not usable: {error}")))?;
        let ips = info.ips.iter().map(|ip| {
            ip.parse()
                .map_err(|_| wrong(&format!("{field}.ips"), format!("{ip:?} is no IP address")))
        });
        zone.names.insert(name, ips.collect::<Result<_, _>>()?);
    }
    zone.namespaces = table.namespaces.iter().cloned().collect();
    Ok(zone)
}
