//! Which endpoint is next: priorities with spill, localities by weight, then the policy.
//!
//! Envoy's arithmetic: a priority's health is `140 % * available / total`, at most 100 %; loads are
//! dealt out in order, the rest spills to the next; panic threshold 0. Coming home counts in part.

use super::outlier::{Millis, Verdict};
use mesh::program::LoadBalancing;
use rand::Rng as _;

/// Envoy's overprovisioning factor, percent.
const OVERPROVISIONING: u64 = 140;

/// One endpoint as the arithmetic sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) weight: u32,
    pub(crate) verdict: Verdict,
    /// Not to be taken by this request at this stage.
    pub(crate) barred: bool,
    /// Verdict may change by itself at this time.
    pub(crate) changes_at: Millis,
}

/// One locality's endpoints: indices into the view's seats.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) priority: u32,
    pub(crate) weight: u32,
    pub(crate) seats: Vec<usize>,
}

/// How bad an endpoint may be to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Healthy ones, and suspects whose trial is due.
    Sound,
    /// Any that is not ejected.
    Doubtful,
    /// Those too that were ejected for being slow: when everything is, waiting is better than
    /// failing, and what limits dials keeps the crowd small.
    Busy,
    /// All, each at its time: when everything is ejected, one try costs nobody anything.
    Last,
}

/// Shares of load, worked out once and used for many picks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    groups: Vec<PlannedGroup>,
    total: u64,
    /// First moment at which it may be wrong by itself.
    pub(crate) valid_until: Millis,
}

#[derive(Debug, Clone)]
struct PlannedGroup {
    /// Load of this and all groups before it.
    until: u64,
    /// Its weights added up to each seat.
    seats: Vec<(u64, usize)>,
    even: bool,
}

impl Plan {
    /// `look` tells about a seat by its index.
    pub(crate) fn new(groups: &[Group], stage: Stage, look: impl Fn(usize) -> Candidate) -> Self {
        let mut plan = Self { groups: Vec::new(), total: 0, valid_until: Millis::MAX };
        let mut left: u64 = 100;
        let mut at = 0;
        let mut chosen: Vec<(u64, Vec<Available>)> = Vec::new();
        while at < groups.len() {
            let priority = groups[at].priority;
            let end = groups[at..].iter().position(|g| g.priority != priority);
            let tier = &groups[at..end.map_or(groups.len(), |n| at + n)];
            at += tier.len();
            let available: Vec<Available> = tier
                .iter()
                .map(|group| Available::of(group, stage, &look, &mut plan.valid_until))
                .collect();
            let takeable = available.iter().any(|group| group.takeable > 0);
            let (mut sound, mut total) = (0u64, 0u64);
            for group in &available {
                // While a sound one is left, a suspicion of its neighbours sends nobody abroad.
                sound += group.counted + if takeable { group.suspects } else { 0 };
                total += group.total;
            }
            // Milli-percent would be finer; Envoy deals in whole percents too.
            let health = (OVERPROVISIONING * sound).checked_div(total).unwrap_or(0).min(100);
            // The way home may round to nothing; who is takeable gets at least a crumb.
            let health = if takeable { health.max(1) } else { 0 };
            let load = health.min(left);
            left -= load;
            chosen.push((health, available));
            if left == 0 {
                break;
            }
        }
        // Fewer than 100 % in all: the healthy ones carry everything, by their share (Envoy's
        // normalised total health).
        let mut left = 100u64;
        let all: u64 = chosen.iter().map(|(health, _)| *health).sum();
        if all == 0 {
            return plan;
        }
        for (health, available) in chosen {
            let share = if all >= 100 { health.min(left) } else { health };
            left = left.saturating_sub(share);
            let weights: u128 = available.iter().map(|group| u128::from(group.effective())).sum();
            for group in available {
                // Millionths keep small localities alive in integer arithmetic; of the largest weights
                // they need more than 64 bits.
                let load = u128::from(share * 1_000_000) * u128::from(group.effective());
                let load = load.checked_div(weights).and_then(|load| load.try_into().ok());
                let load: u64 = load.unwrap_or(0);
                if load == 0 || group.seats.is_empty() {
                    continue;
                }
                plan.total += load;
                plan.groups.push(PlannedGroup {
                    until: plan.total,
                    even: group.seats.windows(2).all(|w| w[1].0 - w[0].0 == group.seats[0].0),
                    seats: group.seats,
                });
            }
        }
        plan
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// An index of a seat. `active` tells its requests in flight and weight; `turn` counts for
    /// round robin.
    pub(crate) fn choose(
        &self,
        policy: LoadBalancing,
        turn: impl Fn() -> u64,
        active: impl Fn(usize) -> (u32, u32),
    ) -> Option<usize> {
        if self.groups.is_empty() {
            return None;
        }
        let mut rng = rand::rng();
        let at = rng.random_range(0..self.total);
        let group = &self.groups[self.groups.partition_point(|group| group.until <= at)];
        if let [(_, only)] = group.seats[..] {
            return Some(only);
        }
        let sum = group.seats.last().map_or(0, |(until, _)| *until);
        let at = |point: u64| group.seats[group.seats.partition_point(|seat| seat.0 <= point)].1;
        Some(match policy {
            LoadBalancing::Random => at(rng.random_range(0..sum)),
            LoadBalancing::RoundRobin if group.even => {
                group.seats[usize::try_from(turn() % group.seats.len() as u64).unwrap_or(0)].1
            }
            // Multiples of the golden ratio visit weights evenly, in no bursts.
            LoadBalancing::RoundRobin => {
                let point = turn().wrapping_mul(0x9E37_79B9_7F4A_7C15);
                at(((u128::from(point) * u128::from(sum)) >> 64) as u64)
            }
            LoadBalancing::LeastRequest => {
                let one = at(rng.random_range(0..sum));
                let mut two = at(rng.random_range(0..sum));
                if one == two {
                    two = at(rng.random_range(0..sum));
                }
                let ((a, a_weight), (b, b_weight)) = (active(one), active(two));
                // Draws go by weight already, so load per weight is what is compared.
                let (left, right) =
                    (u64::from(a) * u64::from(b_weight), u64::from(b) * u64::from(a_weight));
                if left <= right { one } else { two }
            }
        })
    }
}

/// What a locality offers.
struct Available {
    weight: u64,
    total: u64,
    /// What counts as sound when load is dealt out to priorities.
    counted: u64,
    takeable: u64,
    suspects: u64,
    seats: Vec<(u64, usize)>,
}

impl Available {
    fn of(
        group: &Group,
        stage: Stage,
        look: &impl Fn(usize) -> Candidate,
        valid_until: &mut Millis,
    ) -> Self {
        let mut this = Self {
            weight: u64::from(group.weight.max(1)),
            total: 0,
            counted: 0,
            takeable: 0,
            suspects: 0,
            seats: Vec::new(),
        };
        for &seat in &group.seats {
            let candidate = look(seat);
            *valid_until = (*valid_until).min(candidate.changes_at);
            // A hundredfold, so that a share in percent stays whole.
            let weight = u64::from(candidate.weight.max(1)) * 100;
            this.total += weight;
            let share = match (candidate.verdict, stage) {
                (Verdict::Healthy(share), _) => weight * share / 100,
                (Verdict::TrialDue, _)
                | (Verdict::Suspect, Stage::Doubtful | Stage::Busy | Stage::Last)
                | (Verdict::Ejected, Stage::Busy | Stage::Last) => weight,
                (Verdict::Suspect, Stage::Sound) => {
                    this.suspects += weight;
                    0
                }
                (Verdict::Ejected, Stage::Sound | Stage::Doubtful) => 0,
            };
            this.counted += share;
            if share > 0 && !candidate.barred {
                this.takeable += share;
                this.seats.push((this.takeable, seat));
            }
        }
        this
    }

    /// Locality weight times its health, as Envoy does.
    fn effective(&self) -> u64 {
        if self.takeable == 0 || self.total == 0 {
            return 0;
        }
        let sound = self.counted + self.suspects;
        let health = (OVERPROVISIONING * sound / self.total).clamp(1, 100);
        self.weight * health
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn group(priority: u32, seats: &[usize]) -> Group {
        Group { priority, weight: seats.len() as u32, seats: seats.to_vec() }
    }

    fn candidate(verdict: Verdict) -> Candidate {
        Candidate { weight: 1, verdict, barred: false, changes_at: Millis::MAX }
    }

    const WELL: Verdict = Verdict::Healthy(100);

    /// Percent of 20,000 picks by seat.
    fn shares(groups: &[Group], stage: Stage, verdicts: &[Verdict]) -> BTreeMap<usize, u32> {
        let plan = Plan::new(groups, stage, |seat| candidate(verdicts[seat]));
        let mut count: BTreeMap<usize, u32> = BTreeMap::new();
        for _ in 0..20_000 {
            if let Some(seat) = plan.choose(LoadBalancing::Random, || 0, |_| (0, 1)) {
                *count.entry(seat).or_default() += 1;
            }
        }
        count.into_iter().map(|(seat, n)| (seat, (n + 100) / 200)).collect()
    }

    fn near(found: Option<&u32>, expected: u32) {
        let found = *found.unwrap_or(&0);
        assert!(found.abs_diff(expected) <= 2, "{found} % instead of {expected} %");
    }

    #[test]
    fn all_well_means_the_first_priority_only() {
        let groups = [group(0, &[0, 1]), group(1, &[2])];
        let found = shares(&groups, Stage::Sound, &[WELL, WELL, WELL]);
        near(found.get(&0), 50);
        near(found.get(&2), 0);
    }

    #[test]
    fn half_of_a_priority_gone_spills_thirty_percent() {
        // Envoy's table: 50 % healthy * 1.4 = 70 %.
        let groups = [group(0, &[0, 1]), group(1, &[2])];
        let found = shares(&groups, Stage::Sound, &[WELL, Verdict::Ejected, WELL]);
        near(found.get(&0), 70);
        near(found.get(&2), 30);
    }

    #[test]
    fn the_largest_weights_are_shared_as_small_ones() {
        let heavy = |seats: &[usize], weight| Group { weight, ..group(0, seats) };
        let groups = [heavy(&[0], u32::MAX), heavy(&[1], u32::MAX / 3)];
        let found = shares(&groups, Stage::Sound, &[WELL, WELL]);
        near(found.get(&0), 75);
        near(found.get(&1), 25);
    }

    #[test]
    fn a_suspect_is_avoided_without_going_abroad() {
        let groups = [group(0, &[0, 1]), group(1, &[2])];
        let found = shares(&groups, Stage::Sound, &[WELL, Verdict::Suspect, WELL]);
        near(found.get(&0), 100);
        let found = shares(&groups, Stage::Sound, &[Verdict::Suspect, Verdict::Suspect, WELL]);
        near(found.get(&2), 100);
    }

    #[test]
    fn a_total_below_a_hundred_is_shared_by_those_left() {
        let groups = [group(0, &[0, 1, 2, 3, 4]), group(1, &[5, 6, 7, 8, 9])];
        let mut verdicts = [Verdict::Ejected; 10];
        (verdicts[0], verdicts[5]) = (WELL, WELL);
        let found = shares(&groups, Stage::Sound, &verdicts);
        near(found.get(&0), 50);
        near(found.get(&5), 50);
    }

    #[test]
    fn who_comes_home_takes_its_share_slowly() {
        let groups = [group(0, &[0]), group(1, &[1])];
        let found = shares(&groups, Stage::Sound, &[Verdict::Healthy(10), WELL]);
        near(found.get(&0), 14);
        near(found.get(&1), 86);
    }

    #[test]
    fn nothing_sound_is_nothing_until_the_last_stage() {
        let groups = [group(0, &[0])];
        assert!(shares(&groups, Stage::Doubtful, &[Verdict::Ejected]).is_empty());
        near(shares(&groups, Stage::Last, &[Verdict::Ejected]).get(&0), 100);
    }

    #[test]
    fn round_robin_takes_turns() {
        let groups = [group(0, &[0, 1, 2])];
        let plan = Plan::new(&groups, Stage::Sound, |_| candidate(WELL));
        let turns: Vec<usize> = (0..6)
            .map(|turn| plan.choose(LoadBalancing::RoundRobin, || turn, |_| (0, 1)).unwrap())
            .collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn least_request_prefers_the_idle() {
        let groups = [group(0, &[0, 1])];
        let plan = Plan::new(&groups, Stage::Sound, |_| candidate(WELL));
        let mut active = [0u32; 2];
        for _ in 0..1_000 {
            let load = |seat: usize| (active[seat], 1);
            let seat = plan.choose(LoadBalancing::LeastRequest, || 0, load).unwrap();
            active[seat] += 1;
        }
        // Nobody finishes: the loads stay side by side.
        assert!(active[0].abs_diff(active[1]) <= 40, "{active:?}");
    }

    proptest! {
        #[test]
        fn a_pick_is_always_one_that_may_be_taken(
            states in proptest::collection::vec((0u8..5, 1u32..1_000, any::<bool>(), 0u32..3), 1..24),
        ) {
            let mut tiers: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            for (seat, state) in states.iter().enumerate() {
                tiers.entry(state.3).or_default().push(seat);
            }
            let groups: Vec<Group> = tiers
                .into_values()
                .enumerate()
                .map(|(priority, seats)| group(priority as u32, &seats))
                .collect();
            let look = |seat: usize| {
                let (state, weight, barred, _) = states[seat];
                let verdict = match state {
                    0 => WELL,
                    1 => Verdict::Healthy(10),
                    2 => Verdict::Suspect,
                    3 => Verdict::TrialDue,
                    _ => Verdict::Ejected,
                };
                Candidate { weight, verdict, barred, changes_at: Millis::MAX }
            };
            for stage in [Stage::Sound, Stage::Doubtful, Stage::Busy, Stage::Last] {
                let plan = Plan::new(&groups, stage, look);
                let may = |seat: usize| {
                    let c = look(seat);
                    !c.barred && match stage {
                        Stage::Sound => matches!(c.verdict, Verdict::Healthy(_) | Verdict::TrialDue),
                        Stage::Doubtful => c.verdict != Verdict::Ejected,
                        Stage::Busy | Stage::Last => true,
                    }
                };
                prop_assert_eq!(plan.is_empty(), !(0..states.len()).any(may));
                for policy in [LoadBalancing::LeastRequest, LoadBalancing::RoundRobin, LoadBalancing::Random] {
                    for turn in 0..20 {
                        if let Some(seat) = plan.choose(policy, || turn, |s| (s as u32, states[s].1)) {
                            prop_assert!(may(seat), "{stage:?} {policy:?} took {seat}");
                        }
                    }
                }
            }
        }
    }
}
