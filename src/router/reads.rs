//! Linearizable reads of campaigns: at the leader, which alone knows how they pace; if it goes away meanwhile, at a
//! replica here that a quorum has confirmed.

use std::{collections::BTreeMap, sync::Arc};

use andante_cluster::{NodeId, ShardId, host::ProposeError, mutant};
use futures::future::{BoxFuture, join_all};
use tokio::time::{Duration, Instant, sleep};

use super::{CampaignView, ListFilter, PacingView, ReadError, Router};
use crate::{
    actor::{Life, Role, Shard},
    campaign::{book::CampaignState, explain::Obstacle, proto, token::campaign_key},
    peer::{CallError, v1},
};

/// Pauses between tries: an election takes a second or so.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// One try may take this part of the time left: a leader that hangs leaves time for another one.
const TRY_PART: u32 = 2;
/// When a retry makes sense after there was no leader.
const RETRY_AFTER_MS: u64 = 200;

/// What another node asks for.
#[derive(Debug, Clone)]
pub(super) enum Read {
    Campaign(String),
    Pacing(String),
    List(List),
}

/// A part of a list.
#[derive(Debug, Clone)]
pub(super) struct List {
    shards: Vec<ShardId>,
    filter: ListFilter,
    after: String,
    limit: usize,
}

impl Read {
    pub(super) fn from_wire(request: v1::ReadCampaignsRequest) -> Option<Self> {
        use v1::read_campaigns_request::Read as Wire;
        Some(match request.read? {
            Wire::Campaign(name) => Read::Campaign(name),
            Wire::Pacing(name) => Read::Pacing(name),
            Wire::List(list) => {
                let state = Some(list.state()).filter(|state| *state != proto::State::Unspecified);
                let v1::ListCampaigns { shards, after, limit, owner, label, label_value, .. } = list;
                let filter = ListFilter {
                    owner: Some(owner).filter(|owner| !owner.is_empty()),
                    label: Some((label, label_value)).filter(|(label, _)| !label.is_empty()),
                    state,
                };
                let shards = shards.into_iter().map(ShardId).collect();
                Read::List(List { shards, filter, after, limit: limit as usize })
            }
        })
    }

    fn to_wire(&self) -> v1::ReadCampaignsRequest {
        use v1::read_campaigns_request::Read as Wire;
        let read = match self {
            Read::Campaign(name) => Wire::Campaign(name.clone()),
            Read::Pacing(name) => Wire::Pacing(name.clone()),
            Read::List(List { shards, filter, after, limit }) => {
                let (label, label_value) = filter.label.clone().unwrap_or_default();
                Wire::List(v1::ListCampaigns {
                    shards: shards.iter().map(|shard| shard.0).collect(),
                    after: after.clone(),
                    limit: u32::try_from(*limit).unwrap_or(u32::MAX),
                    owner: filter.owner.clone().unwrap_or_default(),
                    label,
                    label_value,
                    state: filter.state.unwrap_or_default().into(),
                })
            }
        };
        v1::ReadCampaignsRequest { read: Some(read) }
    }
}

impl Router {
    /// One campaign; `None` only if there is surely none of this name.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn campaign(&self, name: &str, deadline: Instant) -> Result<Option<CampaignView>, ReadError> {
        let here = || self.campaign_here(name);
        let there = |mut response: v1::ReadCampaignsResponse| response.campaigns.pop().and_then(view_from_wire);
        self.read_one(self.shard_of(name), &Read::Campaign(name.to_owned()), deadline, here, there).await
    }

    /// A campaign's pacing; `None` only if there is surely no campaign of this name.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn pacing(&self, name: &str, deadline: Instant) -> Result<Option<PacingView>, ReadError> {
        let here = || self.pacing_here(name);
        let there = |mut response: v1::ReadCampaignsResponse| {
            let view = response.campaigns.pop().and_then(view_from_wire)?;
            let v1::Pacing { now_ms, planned_micros, mu, billable_share, stranded_micros } = response.pacing?;
            Some(PacingView { view, now_ms, planned_micros, mu, billable_share, stranded_micros })
        };
        self.read_one(self.shard_of(name), &Read::Pacing(name.to_owned()), deadline, here, there).await
    }

    /// Up to `limit` campaigns with names after `after`, in name order, and whether there are more. Each shard's part
    /// is linearizable; all shards are there or it is an error.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn list(
        &self,
        filter: &ListFilter,
        after: &str,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<CampaignView>, bool), ReadError> {
        let mut open: Vec<ShardId> = (0..self.shards.count() as u32).map(ShardId).collect();
        let mut views = Vec::new();
        let mut pauses = Pauses::default();
        loop {
            let mut groups: BTreeMap<NodeId, Vec<ShardId>> = BTreeMap::new();
            for shard in &open {
                if let Some(leader) = self.shards.leader(*shard) {
                    groups.entry(leader).or_default().push(*shard);
                }
            }
            let until = part_of(deadline);
            // Each part has its first `limit + 1`; the first `limit` of all are among them.
            let list = |shards| List { shards, filter: filter.clone(), after: after.to_owned(), limit: limit + 1 };
            let parts = groups.into_iter().map(|(node, shards)| self.list_at(node, list(shards), until));
            self.collect(join_all(parts).await, &mut open, &mut views);
            // Leaders that are gone: what has a replica here is asked there.
            let orphans: Vec<_> = open.iter().copied().filter(|shard| self.host.has_replica(*shard)).collect();
            if !orphans.is_empty() {
                let part = self.list_where_confirmed(list(orphans), part_of(deadline)).await;
                self.collect(vec![part], &mut open, &mut views);
            }
            if open.is_empty() {
                break;
            }
            if !pauses.pause(deadline).await {
                let shard = open.first().map_or(0, |shard| shard.0);
                return Err(unavailable(format!("shard {shard} (and {} more) did not answer", open.len() - 1)));
            }
        }
        views.sort_by_cached_key(name_of);
        let more = views.len() > limit;
        views.truncate(limit);
        Ok((views, more))
    }

    fn collect(
        &self,
        parts: Vec<(Vec<ShardId>, Vec<CampaignView>)>,
        open: &mut Vec<ShardId>,
        views: &mut Vec<CampaignView>,
    ) {
        for (answered, part) in parts {
            // A shard that moved meanwhile may be in two answers.
            let new = part.into_iter().filter(|view| open.contains(&self.host.shard_of(view.campaign.key)));
            views.extend(new);
            open.retain(|shard| !answered.contains(shard));
        }
    }

    /// A part of a list at one node: which shards answered, and what.
    async fn list_at(&self, node: NodeId, list: List, until: Instant) -> (Vec<ShardId>, Vec<CampaignView>) {
        if node == self.me {
            return self.list_where_confirmed(list, until).await;
        }
        let shards = list.shards.clone();
        match self.links.read(node, Read::List(list).to_wire(), until).await {
            Ok(response) => {
                let silent = |shard: &ShardId| response.silent.iter().any(|silent| silent.shard == shard.0);
                let answered = shards.into_iter().filter(|shard| !silent(shard)).collect();
                (answered, response.campaigns.into_iter().filter_map(view_from_wire).collect())
            }
            Err(_) => (Vec::new(), Vec::new()),
        }
    }

    /// A part of a list from the replicas here that a quorum confirms.
    async fn list_where_confirmed(&self, list: List, until: Instant) -> (Vec<ShardId>, Vec<CampaignView>) {
        let confirmed = join_all(list.shards.iter().map(|shard| self.confirmed(*shard, until))).await;
        let answered: Vec<_> =
            list.shards.iter().zip(confirmed).filter(|(_, confirmed)| confirmed.is_ok()).map(|(s, _)| *s).collect();
        let views = self.list_here(&List { shards: answered.clone(), ..list });
        (answered, views)
    }

    /// Reads at the leader, or else here, until there is an answer.
    async fn read_one<T>(
        &self,
        shard: ShardId,
        read: &Read,
        deadline: Instant,
        here: impl Fn() -> Option<T>,
        there: impl Fn(v1::ReadCampaignsResponse) -> Option<T>,
    ) -> Result<Option<T>, ReadError> {
        let mut pauses = Pauses::default();
        let mut why = String::from("no leader is known");
        let mut told = None;
        loop {
            let leader = told.take().or_else(|| self.shards.leader(shard));
            let until = part_of(deadline);
            match leader {
                Some(leader) if leader == self.me => match self.confirmed(shard, until).await {
                    Ok(()) => return Ok(here()),
                    Err(error) => why = error.to_string(),
                },
                Some(leader) => match self.links.read(leader, read.to_wire(), until).await {
                    Ok(response) => match response.silent.first() {
                        None => return Ok(there(response)),
                        Some(silent) => {
                            told = Some(silent.leader).filter(|next| *next != 0 && *next != leader);
                            why = format!("node {leader} does not lead it {}", silent.reason);
                        }
                    },
                    Err(CallError::Overloaded) => return Err(ReadError::Overloaded { retry_after_ms: RETRY_AFTER_MS }),
                    Err(error) => why = format!("node {leader}: {error}"),
                },
                None => {}
            }
            let confirmable = told.is_none() && leader != Some(self.me) && self.host.has_replica(shard);
            if confirmable && self.confirmed(shard, part_of(deadline)).await.is_ok() {
                return Ok(here());
            }
            if !pauses.pause(deadline).await {
                return Err(unavailable(format!("shard {shard}: {why}")));
            }
        }
    }

    /// What another node asked for, of shards that this one leads.
    pub(super) async fn read_for_peer(&self, read: &Read, deadline: Instant) -> v1::ReadCampaignsResponse {
        let mut response = v1::ReadCampaignsResponse::default();
        let shards = match read {
            Read::Campaign(name) | Read::Pacing(name) => &[self.shard_of(name)][..],
            Read::List(list) => &list.shards,
        };
        let mut confirmed = Vec::new();
        for (shard, result) in shards.iter().zip(join_all(shards.iter().map(|s| self.confirm(*s, deadline))).await) {
            match result {
                Ok(()) => confirmed.push(*shard),
                Err(silent) => response.silent.push(silent),
            }
        }
        let views = match read {
            _ if confirmed.is_empty() => Vec::new(),
            Read::Campaign(name) => self.campaign_here(name).into_iter().collect(),
            Read::Pacing(name) => {
                let pacing = self.pacing_here(name);
                response.pacing = pacing.as_ref().map(|pacing| v1::Pacing {
                    now_ms: pacing.now_ms,
                    planned_micros: pacing.planned_micros,
                    mu: pacing.mu,
                    billable_share: pacing.billable_share,
                    stranded_micros: pacing.stranded_micros,
                });
                pacing.into_iter().map(|pacing| pacing.view).collect()
            }
            Read::List(list) => self.list_here(&List { shards: confirmed, ..list.clone() }),
        };
        response.campaigns = views.into_iter().map(view_to_wire).collect();
        response
    }

    /// The replica here has applied everything that was acknowledged before. Boxed: the futures of reads nest deep.
    fn confirmed(&self, shard: ShardId, deadline: Instant) -> BoxFuture<'_, Result<(), ProposeError>> {
        if mutant!(ReadWithoutReadIndex) {
            return Box::pin(std::future::ready(Ok(())));
        }
        Box::pin(self.host.read_index(shard, deadline))
    }

    /// This node leads a shard, and a quorum says so.
    async fn confirm(&self, shard: ShardId, deadline: Instant) -> Result<(), v1::SilentShard> {
        if self.shards.leader(shard) != Some(self.me) {
            return Err(self.silent(shard, String::new()));
        }
        self.confirmed(shard, deadline).await.map_err(|error| self.silent(shard, error.to_string()))
    }

    /// A campaign as the replica here has it: maybe not the latest. For a client's eyes use [`Router::campaign`].
    pub fn campaign_here(&self, name: &str) -> Option<CampaignView> {
        let key = campaign_key(name);
        let shard = self.shards.get(self.host.shard_of(key))?;
        let record = shard.book().campaign(key).filter(|c| c.spec.name == name).map(CampaignState::to_proto)?;
        Some(self.view(record))
    }

    fn pacing_here(&self, name: &str) -> Option<PacingView> {
        let view = self.campaign_here(name)?;
        let shard = self.shards.get(self.host.shard_of(view.campaign.key))?;
        let now_ms = self.clock.now_ms();
        let cell = shard.cell(view.campaign.key)?;
        let stored = shard.book().campaign(view.campaign.key).map(|campaign| shard.pacer(campaign))?;
        let live = (cell.life() == Life::Live).then(|| cell.status());
        let (mu, billable_share) = match &live {
            Some(status) => (status.mu, status.billable_share),
            None => (stored.mu(), stored.billable_share()),
        };
        Some(PacingView {
            now_ms,
            planned_micros: stored.planned_micros(now_ms),
            mu,
            billable_share,
            stranded_micros: live.map_or(0, |status| status.stranded_micros),
            view,
        })
    }

    fn list_here(&self, list: &List) -> Vec<CampaignView> {
        let mut records = Vec::new();
        for shard in list.shards.iter().filter_map(|shard| self.shards.get(*shard)) {
            let book = shard.book();
            let matching = book.campaigns_after(Some(&list.after)).filter(|c| list.filter.matches(c));
            records.extend(matching.take(list.limit).map(CampaignState::to_proto));
        }
        let name = |record: &proto::Campaign| record.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
        records.sort_by_cached_key(name);
        records.truncate(list.limit);
        records.into_iter().map(|record| self.view(record)).collect()
    }

    pub(super) fn shard_of(&self, name: &str) -> ShardId {
        self.host.shard_of(campaign_key(name))
    }

    /// What is known of a campaign here beside its record.
    pub(super) fn view(&self, campaign: proto::Campaign) -> CampaignView {
        let shard = self.shards.get(self.host.shard_of(campaign.key));
        let open = |shard: &Arc<Shard>| shard.book().campaign(campaign.key).map_or(0, |c| c.open.len() as u32);
        let open_allowances = shard.map_or(0, open);
        let explanation = self.explain(&campaign, shard.map(|shard| &**shard));
        CampaignView { campaign: Arc::new(campaign), open_allowances, explanation }
    }

    /// What keeps a campaign from its plan, in words. Only its leader has an actor to ask.
    fn explain(&self, campaign: &proto::Campaign, shard: Option<&Shard>) -> String {
        match campaign.state() {
            proto::State::Paused => return "paused".into(),
            proto::State::Ended => return "ended".into(),
            proto::State::Deleting => return "being deleted: waits for its last allowance to close".into(),
            _ => {}
        }
        let Some(shard) = shard else { return String::new() };
        let Some(cell) = shard.cell(campaign.key) else { return String::new() };
        match cell.life() {
            Life::Quarantined => {
                "quarantined: its actor failed again and again; pause and resume it to try again".into()
            }
            Life::Failed => "its actor failed and is about to be started again".into(),
            Life::Live => cell.status().explanation,
            Life::Dormant => self.explain_dormant(campaign, shard),
        }
    }

    /// Without an actor: what the book alone can tell.
    fn explain_dormant(&self, campaign: &proto::Campaign, shard: &Shard) -> String {
        let now_ms = self.clock.now_ms();
        let book = shard.book();
        let Some(state) = book.campaign(campaign.key) else { return String::new() };
        let obstacle = if now_ms < state.spec.start_ms {
            Obstacle::NotStarted
        } else if now_ms >= state.spec.end_ms {
            Obstacle::Ended
        } else if state.is_exhausted() {
            Obstacle::BudgetExhausted
        } else if shard.role() == Role::Leading {
            Obstacle::NoTraffic
        } else {
            return String::new();
        };
        obstacle.to_string()
    }
}

impl ListFilter {
    fn matches(&self, campaign: &CampaignState) -> bool {
        let spec = &campaign.spec;
        let owner = self.owner.as_ref().is_none_or(|owner| *owner == spec.owner);
        let state = self.state.is_none_or(|state| state == campaign.state);
        let label = self.label.as_ref().is_none_or(|(key, value)| {
            spec.labels.get(key).is_some_and(|have| value.as_ref().is_none_or(|want| want == have))
        });
        owner && state && label
    }
}

/// Growing pauses between tries.
pub(super) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Pauses(PAUSE_FIRST)
    }
}

impl Pauses {
    /// Waits before the next try; `false`: there is no time for one.
    pub(super) async fn pause(&mut self, deadline: Instant) -> bool {
        if Instant::now() + self.0 >= deadline {
            return false;
        }
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(PAUSE_MAX);
        true
    }
}

fn part_of(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / TRY_PART
}

fn unavailable(reason: String) -> ReadError {
    ReadError::Unavailable { reason, retry_after_ms: RETRY_AFTER_MS }
}

fn name_of(view: &CampaignView) -> String {
    view.campaign.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default()
}

fn view_to_wire(view: CampaignView) -> v1::CampaignView {
    let CampaignView { campaign, open_allowances, explanation } = view;
    let campaign = Arc::unwrap_or_clone(campaign);
    v1::CampaignView { campaign: Some(campaign), open_allowances, explanation }
}

fn view_from_wire(view: v1::CampaignView) -> Option<CampaignView> {
    let v1::CampaignView { campaign, open_allowances, explanation } = view;
    Some(CampaignView { campaign: Arc::new(campaign?), open_allowances, explanation })
}
