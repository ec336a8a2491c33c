//! Simpler plans that may break the same promise: shorter faults, a smaller cluster, less load.

use crate::plan::Plan;

/// Faults are not made shorter than this: what lasts less than a few round trips is another fault.
const FAULT_MS_MIN: u64 = 50;
/// Times are cut to multiples of this, so that they end somewhere.
const ROUND_MS: u64 = 50;

/// Simpler plans, the boldest of each kind first. Each is smaller in one respect, so taking one after the other ends.
/// Some may be none that the simulation can play.
pub(super) fn of(plan: &Plan) -> Vec<Plan> {
    let mut simpler = Vec::new();
    let mut add = |reduced: Plan| {
        if reduced != *plan && !simpler.contains(&reduced) {
            simpler.push(reduced);
        }
    };
    for nodes in fewer(plan.nodes) {
        add(with_nodes(plan, nodes));
    }
    for node in (0..plan.nodes).filter(|_| plan.nodes > 1) {
        add(without_host(&Plan { nodes: plan.nodes - 1, ..plan.clone() }, node));
    }
    for shards in fewer(plan.shards) {
        add(Plan { shards, ..plan.clone() });
    }
    for clients in fewer(plan.load.clients) {
        add(with_clients(plan, clients));
    }
    for campaigns in fewer(plan.load.campaigns) {
        add(edited(plan, |plan| plan.load.campaigns = campaigns));
    }
    for left_out in 0..plan.schedule.len() {
        add(edited(plan, |plan| drop(plan.schedule.remove(left_out))));
    }
    add(edited(plan, |plan| plan.schedule.iter_mut().for_each(|fault| fault.for_ms = shorter(fault.for_ms))));
    for position in 0..plan.schedule.len() {
        add(edited(plan, |plan| plan.schedule[position].for_ms = shorter(plan.schedule[position].for_ms)));
    }
    let last_ends_ms = plan.schedule.iter().map(|fault| fault.at_ms.saturating_add(fault.for_ms)).max().unwrap_or(0);
    for faults_ms in [last_ends_ms, plan.faults_ms / 2] {
        if (last_ends_ms..plan.faults_ms).contains(&faults_ms) {
            add(Plan { faults_ms, ..plan.clone() });
        }
    }
    simpler
}

/// One, half, one less.
fn fewer(count: u32) -> impl Iterator<Item = u32> {
    [1, count / 2, count.saturating_sub(1)].into_iter().filter(move |fewer| (1..count).contains(fewer))
}

fn shorter(for_ms: u64) -> u64 {
    if for_ms <= FAULT_MS_MIN { for_ms } else { (for_ms / 2 / ROUND_MS * ROUND_MS).max(FAULT_MS_MIN) }
}

fn edited(plan: &Plan, edit: impl FnOnce(&mut Plan)) -> Plan {
    let mut plan = plan.clone();
    edit(&mut plan);
    plan
}

fn with_nodes(plan: &Plan, nodes: u32) -> Plan {
    let mut reduced = Plan { nodes, ..plan.clone() };
    for node in (nodes..plan.nodes).rev() {
        reduced = without_host(&reduced, node);
    }
    reduced
}

fn with_clients(plan: &Plan, clients: u32) -> Plan {
    let mut reduced = edited(plan, |plan| plan.load.clients = clients);
    for client in (clients..plan.load.clients).rev() {
        reduced = without_host(&reduced, plan.nodes + client);
    }
    reduced
}

/// Takes the host at that position out of the lists of hosts; those after it move up. Faults that befell only it go.
fn without_host(plan: &Plan, host: u32) -> Plan {
    let mut plan = plan.clone();
    if (host as usize) < plan.skews_ms.len() {
        plan.skews_ms.remove(host as usize);
    }
    plan.schedule.retain(|fault| fault.on.iter().any(|on| *on != host) || fault.on.is_empty());
    for fault in &mut plan.schedule {
        fault.on.retain(|on| *on != host);
        for on in &mut fault.on {
            *on -= u32::from(*on > host);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use andante::settings::Settings;

    use super::*;
    use crate::plan::{Injection, Load};

    fn fault(at_ms: u64, for_ms: u64, on: &[u32]) -> Injection {
        Injection { fault: "partition".to_owned(), at_ms, for_ms, on: on.to_vec(), amount: 0 }
    }

    fn plan() -> Plan {
        let load = Load {
            clients: 2,
            campaigns: 5,
            hold_ms: 10_000,
            pause_ms: 50,
            slots: 2,
            deliveries: 1_000,
            hot: 0.1,
            duplicated: 0.1,
            not_used: 0.1,
            late: 0.1,
            lost: 0.1,
            edit_pause_ms: 1_000,
        };
        Plan {
            seed: 1,
            nodes: 5,
            shards: 4,
            settings: Settings::default(),
            latency_ms: (1, 10),
            sync_micros: (100, 1_000),
            blocking_micros: (100, 1_000),
            skews_ms: vec![0, 1, 2, 3, 4, 100, 101],
            load,
            faults_ms: 60_000,
            beyond: false,
            schedule: vec![fault(1_000, 8_000, &[0, 2]), fault(5_000, 1_000, &[3]), fault(7_000, 500, &[6])],
        }
    }

    #[test]
    fn with_a_node_go_its_skew_and_its_faults_and_the_others_move_up() {
        let reduced = with_nodes(&plan(), 3);
        assert_eq!((reduced.nodes, reduced.skews_ms), (3, vec![0, 1, 2, 100, 101]));
        assert_eq!(reduced.schedule, [fault(1_000, 8_000, &[0, 2]), fault(7_000, 500, &[4])]);
    }

    #[test]
    fn with_a_client_go_its_skew_and_its_faults() {
        let reduced = with_clients(&plan(), 1);
        assert_eq!((reduced.load.clients, reduced.skews_ms), (1, vec![0, 1, 2, 3, 4, 100]));
        assert_eq!(reduced.schedule.len(), 2);
    }

    #[test]
    fn faults_that_befall_everybody_stay() {
        let mut everybody = plan();
        everybody.schedule = vec![fault(1_000, 8_000, &[])];
        assert_eq!(without_host(&everybody, 2).schedule, everybody.schedule);
    }

    #[test]
    fn the_time_of_faults_is_cut_to_where_the_last_one_ends() {
        let cut: Vec<u64> = of(&plan()).iter().map(|plan| plan.faults_ms).filter(|ms| *ms < 60_000).collect();
        assert_eq!(cut, [9_000, 30_000]);
    }

    #[test]
    fn taking_any_one_again_and_again_ends_with_the_simplest() {
        for choice in 0..7 {
            let mut plan = plan();
            let mut steps = 0;
            loop {
                let mut simpler = of(&plan);
                if simpler.is_empty() {
                    break;
                }
                let hosts_before = (plan.nodes + plan.load.clients) as usize;
                assert_eq!(plan.skews_ms.len(), hosts_before);
                plan = simpler.swap_remove(choice * 13 % simpler.len());
                steps += 1;
                assert!(steps < 100, "no end");
            }
            assert_eq!((plan.nodes, plan.shards, plan.load.clients, plan.load.campaigns), (1, 1, 1, 1));
            assert_eq!((plan.schedule.len(), plan.faults_ms), (0, 0));
        }
    }
}
