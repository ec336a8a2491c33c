//! One session of a link: the peer's frames come in here, and answers go out.
//!
//! Calls are handed to consensus in the order in which they came and answered as they finish. Nothing here waits for
//! a group: what a slow one has not answered yet is set aside, up to a limit per group.

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, poll, stream::FuturesUnordered};
use tokio::task::{consume_budget, unconstrained};
use tonic::Status;

use super::{
    PeerHandler, convert,
    link::{Link, SessionId},
    stats::{PeerStats, add},
};
use crate::{
    GroupId,
    proto::{Frame, frame::Body},
    raft::types::Raft,
};

/// Calls of one group of one peer under way here at once: its appends, its heartbeats and an election, with room to
/// spare. More means that the group is stuck.
const CALLS_PER_GROUP: usize = 64;
/// Questions of one peer under way here at once; more are refused, and nothing was done then.
const QUESTIONS: usize = 4_096;

type Answering = Pin<Box<dyn Future<Output = Frame> + Send>>;

/// The calls of one peer under way here.
#[derive(Default)]
struct Calls {
    running: FuturesUnordered<Answering>,
    per_group: HashMap<u32, usize>,
    questions: usize,
}

impl Calls {
    fn admit(&mut self, group: u32) -> bool {
        let running = self.per_group.entry(group).or_default();
        *running += 1;
        *running <= CALLS_PER_GROUP
    }

    /// A call was carried out; this is what is sent back.
    fn finished(&mut self, frame: &Frame) {
        match frame.body {
            Some(Body::Reply(_)) => self.questions -= 1,
            _ => self.left(frame.group),
        }
    }

    fn left(&mut self, group: u32) {
        if let Some(running) = self.per_group.get_mut(&group) {
            *running -= 1;
            if *running == 0 {
                self.per_group.remove(&group);
            }
        }
    }
}

/// One session of a link.
pub(super) struct Session {
    pub(super) link: Arc<Link>,
    pub(super) id: SessionId,
    pub(super) handler: Arc<dyn PeerHandler>,
    pub(super) stats: Arc<PeerStats>,
}

impl Session {
    /// Takes in what the peer sends, until the session ends; says why it did.
    pub(super) async fn run(
        self,
        mut frames: impl Stream<Item = Result<Vec<Frame>, Status>> + Unpin,
    ) -> Option<Status> {
        self.link.tell_changed(&*self.handler);
        add(&self.stats.links_up, 1);
        let leads = self.handler.leads();
        self.link.tell(Some(self.id), Frame { group: 0, call: 0, body: Some(Body::Leads(leads)) });
        let mut calls = Calls::default();
        let why = {
            let mut ended = std::pin::pin!(self.link.ended(self.id));
            loop {
                tokio::select! {
                    biased;
                    () = &mut ended => break None,
                    Some(answer) = calls.running.next() => {
                        calls.finished(&answer);
                        self.link.tell(Some(self.id), answer);
                    }
                    batch = frames.next() => match batch {
                        Some(Ok(batch)) => {
                            add(&self.stats.frames_in, batch.len() as u64);
                            for frame in batch {
                                self.take_in(frame, &mut calls).await;
                            }
                            consume_budget().await;
                        }
                        Some(Err(status)) => break Some(status),
                        None => break None,
                    },
                }
            }
        };
        self.stats.links_up.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        add(&self.stats.links_broken, 1);
        self.link.end(self.id);
        self.link.tell_changed(&*self.handler);
        why
    }

    /// Takes in one frame. Never waits: async only so that a call can be polled.
    async fn take_in(&self, frame: Frame, calls: &mut Calls) {
        let Frame { group, call, body } = frame;
        match body {
            Some(
                answer @ (Body::AppendAnswer(_)
                | Body::VoteAnswer(_)
                | Body::PreVoteAnswer(_)
                | Body::TransferLeaderAnswer(_)
                | Body::Reply(_)
                | Body::Failed(_)),
            ) => self.link.answered(self.id, call, answer),
            Some(Body::Leads(leads)) => self.handler.peer_leads(self.link.peer, leads),
            Some(Body::Question(question)) => self.take_in_question(call, question, calls),
            Some(body) => self.take_in_call(group, call, body, calls).await,
            // Something that a later version says.
            None => self.refuse(group, call, "unknown frame"),
        }
    }

    async fn take_in_call(&self, group: u32, call: u64, body: Body, calls: &mut Calls) {
        let Some(raft) = self.handler.raft(GroupId(group)) else {
            return self.refuse(group, call, "no replica of the group here");
        };
        if !calls.admit(group) {
            calls.left(group);
            add(&self.stats.calls_refused, 1);
            return self.refuse(group, call, "busy: too many calls of the group under way");
        }
        let answer = async move {
            let body = execute(&raft, body).await.unwrap_or_else(Body::Failed);
            Frame { group, call, body: Some(body) }
        };
        // Polled here and without a budget, so that it is in the queue of its group's core before the next one is.
        let mut answer: Answering = Box::pin(unconstrained(answer));
        match poll!(&mut answer) {
            std::task::Poll::Ready(frame) => {
                calls.left(group);
                self.link.tell(Some(self.id), frame);
            }
            std::task::Poll::Pending => calls.running.push(answer),
        }
    }

    fn take_in_question(&self, call: u64, question: Bytes, calls: &mut Calls) {
        if calls.questions >= QUESTIONS {
            add(&self.stats.calls_refused, 1);
            return self.refuse(0, call, "busy: too many questions under way");
        }
        let Some(answer) = self.handler.answer(self.link.peer, question) else {
            return self.refuse(0, call, "nobody answers here");
        };
        calls.questions += 1;
        calls.running.push(Box::pin(async move { Frame { group: 0, call, body: Some(Body::Reply(answer.await)) } }));
    }

    fn refuse(&self, group: u32, call: u64, why: &str) {
        self.link.tell(Some(self.id), Frame { group, call, body: Some(Body::Failed(why.to_owned())) });
    }
}

/// Carries out a call; the error goes back to the caller.
async fn execute(raft: &Raft, call: Body) -> Result<Body, String> {
    Ok(match call {
        Body::Append(call) => {
            let request = convert::append_request(call).map_err(text)?;
            Body::AppendAnswer(convert::append_answer(&raft.append_entries(request).await.map_err(text)?))
        }
        Body::Vote(call) => {
            let request = convert::vote_request(&call).map_err(text)?;
            Body::VoteAnswer(convert::vote_answer(&raft.vote(request).await.map_err(text)?))
        }
        Body::PreVote(call) => {
            let request = convert::vote_request(&call).map_err(text)?;
            Body::PreVoteAnswer(convert::vote_answer(&raft.pre_vote(request).await.map_err(text)?))
        }
        Body::TransferLeader(call) => {
            let request = convert::transfer_request(&call).map_err(text)?;
            let response = raft.handle_transfer_leader(request).await.map_err(text)?;
            Body::TransferLeaderAnswer(convert::transfer_answer(&response))
        }
        _ => return Err("not a call".to_owned()),
    })
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
