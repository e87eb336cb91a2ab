//! Whether a cluster's programs run, by its Lease, and by their own pages where somebody said where.

use super::super::item::{About, Group, Item, Mark};
use super::super::seen::{Cluster, Seen};
use super::unread;
use cluster::operator::look::Look;
use serde_json::Value;

/// Seconds that a lease may be older than it says: our clocks have whole seconds.
const LEASE_GRACE: i64 = 3;

/// Whether somebody leads there.
pub(super) fn lease(seen: &Seen, cluster: &Cluster, look: &Look, items: &mut Vec<Item>) {
    let context = &cluster.context;
    let about = About::Controller(context.clone());
    let lease = match &look.lease {
        Ok(lease) => lease,
        Err(why) => {
            return items.push(unread(Group::Programs, context, "who leads", why));
        }
    };
    let sentence = match lease {
        None => format!(
            "ISM2610 no federation controller ever ran there (no Lease in {}): nothing is exported or \
             imported. Fix: start it, and apply deploy/base/roles.yaml.",
            seen.root_namespace
        ),
        Some(held) if held.holder.is_empty() => {
            "ISM2610 the federation controller was stopped and none took over; exports and imports stand \
             still. Fix: start it."
                .into()
        }
        Some(held) if held.age > held.seconds + LEASE_GRACE => format!(
            "ISM2610 the federation controller ({}) has not renewed its lease for {} s, {} are allowed; \
             exports and imports stand still. Fix: start it, or see in its log what it waits for.",
            held.holder, held.age, held.seconds
        ),
        Some(held) => {
            let said = format!("federation controller {} leads", held.holder);
            return items.push(Item::good(Group::Programs, About::Other, context, said));
        }
    };
    let programs = About::Pods(context.clone(), seen.root_namespace.clone());
    let causes = [programs, About::Installed(context.clone()), About::Server(context.clone())];
    let item = Item::wrong(Group::Programs, Mark::Broken, about, context, &sentence);
    items.push(item.following(causes));
}

/// What the programs say of themselves, where somebody said where to ask.
pub(super) fn pages(seen: &Seen, cluster: &Cluster, items: &mut Vec<Item>) {
    let context = &cluster.context;
    // One that answers and is ready is none of the pods that do not start.
    let causes = |runs: bool| {
        let programs = About::Pods(context.clone(), seen.root_namespace.clone());
        let context = || context.clone();
        let others =
            [About::Signing(context()), About::Installed(context()), About::Server(context())];
        Some(programs).filter(|_| !runs).into_iter().chain(others)
    };
    let mut say = |about: About, runs: bool, sentence: &str| {
        let follows: Vec<About> = causes(runs).chain([about.clone()]).collect();
        let item = Item::wrong(Group::Programs, Mark::Broken, about, context, sentence);
        items.push(item.following(follows));
    };
    if let Some(page) = &cluster.control_plane {
        let about = About::ControlPlane(context.clone());
        match (&page.waits, &page.sessions) {
            (Err(why), _) => say(
                about,
                false,
                &format!(
                    "ISM2611 the control plane does not answer at {}: {why}; proxies keep what they \
                     have, new pods get nothing. Fix: start it.",
                    page.place
                ),
            ),
            (Ok(waits), _) if !waits.is_empty() => {
                let waits = waits.replace('\n', " ");
                say(
                    about,
                    false,
                    &format!(
                        "ISM2611 the control plane is not ready, {waits} Fix: mend what it waits for, or see its log."
                    ),
                );
            }
            (Ok(_), Ok(sessions)) => match refusals(sessions).first() {
                Some((proxy, why)) => say(
                    about,
                    true,
                    &format!(
                        "ISM2612 proxy {proxy} refuses what it is sent: {why}. Fix: see `isthmus \
                         proxy-status`; it goes on with its last good configuration."
                    ),
                ),
                None => {
                    let count = sessions.as_array().map_or(0, Vec::len);
                    let said =
                        format!("control plane serves {count} proxies, none refuses anything");
                    items.push(Item::good(Group::Programs, About::Other, context, said));
                }
            },
            (Ok(_), Err(why)) => {
                say(about, true, &format!("ISM2611 its page /sessions: {why}. Fix: see its log."));
            }
        }
    }
    let mut say = |runs: bool, sentence: &str| {
        let about = About::Controller(context.clone());
        let follows = causes(runs).chain([about.clone()]);
        let item = Item::wrong(Group::Programs, Mark::Broken, about, context, sentence);
        items.push(item.following(follows));
    };
    let Some(page) = &cluster.controller else { return };
    match &page.waits {
        Err(why) => say(
            false,
            &format!(
                "ISM2610 the federation controller does not answer at {}: {why}; exports, imports and DNS \
                 stand still. Fix: start it.",
                page.place
            ),
        ),
        Ok(waits) if !waits.is_empty() => {
            let waits = waits.replace('\n', " ");
            say(
                false,
                &format!(
                    "ISM2610 the federation controller is not ready, {waits} Fix: mend what it waits for, or see its log."
                ),
            );
        }
        Ok(_) => {
            let refused = page.links.as_ref().map(|links| &links["writing"]["refused"]);
            if let Ok(Some(first)) = refused.map(|list| list[0].as_str()) {
                say(
                    true,
                    &format!(
                        "ISM2613 its API server refuses what the controller writes: {first}. Fix: see that \
                         it serves the kinds it is to write, and that the controller may."
                    ),
                );
            }
            match &page.dns {
                Ok(dns) => items.extend(names(context, dns)),
                Err(why) => {
                    say(true, &format!("ISM2614 its page /dns: {why}. Fix: see its log."));
                }
            }
        }
    }
}

/// What DNS answered when the controller asked it, as a client would.
fn names(context: &str, dns: &Value) -> Option<Item> {
    let asked = dns["asked"].as_array()?;
    let problem = asked.iter().find_map(|one| {
        let why = one["problem"].as_str()?;
        Some((one["server"].as_str().unwrap_or_default(), why))
    });
    Some(match problem {
        Some((server, why)) => {
            let sentence = format!(
                "ISM2614 DNS at {server} does not answer its own controller: {why}; names of the mesh do \
                 not resolve. Fix: see its log, and what else holds the port."
            );
            let about = About::Other;
            Item::wrong(Group::Programs, Mark::Broken, about, context, &sentence)
        }
        None => {
            let said = format!("DNS answers, {} names known", dns["names"]);
            Item::good(Group::Programs, About::Other, context, said)
        }
    })
}

/// Proxies that refused the last of something, with their reason.
fn refusals(sessions: &Value) -> Vec<(String, String)> {
    let all = sessions.as_array().into_iter().flatten();
    let one = |session: &Value| {
        let types = session["types"].as_array()?;
        let nack = types.iter().find_map(|state| state["nack"].as_str())?;
        Some((session["proxy"].as_str().unwrap_or_default().to_owned(), nack.to_owned()))
    };
    all.filter_map(one).collect()
}
