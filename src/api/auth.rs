//! Who may call what: one table, enforced in front of all handlers, before a request's body is read.

use std::{
    collections::HashMap,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::{Either, Ready, ready};
use http::{Request, Response, header::AUTHORIZATION};
use tonic::Status;
use tower::{Layer, Service};

use super::error::ApiError;
use crate::{
    access::{Denied, Role},
    metrics::Method,
    node::Node,
    v1,
};

/// Health checks need no token: whoever checks (a load balancer, a kubelet) has none, and learns nothing from it.
const OPEN: &str = "/grpc.health.v1.Health/";

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing.
    Nothing,
    /// A valid token of any role: reflection, what everybody may ask, what does not exist.
    Token,
    /// This role.
    Role(Role),
}

/// The service of a method and the role that it needs; `None`: any.
fn rule(method: Method) -> (&'static str, Option<Role>) {
    use v1::{
        access_service_server as access, campaign_service_server as campaign, cluster_service_server as cluster,
        outcome_service_server as outcome, score_service_server as score, server_service_server as server,
    };
    match method {
        Method::Score => (score::SERVICE_NAME, Some(Role::Score)),
        Method::Report => (outcome::SERVICE_NAME, Some(Role::Outcome)),
        Method::CreateCampaign
        | Method::GetCampaign
        | Method::ListCampaigns
        | Method::UpdateCampaign
        | Method::PauseCampaign
        | Method::ResumeCampaign
        | Method::EndCampaign
        | Method::DeleteCampaign
        | Method::ImportCampaigns
        | Method::WatchPacing => (campaign::SERVICE_NAME, Some(Role::Campaign)),
        Method::GetServerInfo => (server::SERVICE_NAME, None),
        Method::GetClusterStatus => (cluster::SERVICE_NAME, None),
        Method::GetClusterSettings | Method::UpdateClusterSettings => (cluster::SERVICE_NAME, Some(Role::Operator)),
        Method::ConfirmClock => (server::SERVICE_NAME, Some(Role::Operator)),
        Method::CreateToken
        | Method::ListTokens
        | Method::RevokeToken
        | Method::CreateJoinToken
        | Method::GetAuthority
        | Method::RotateTokenKeys => (access::SERVICE_NAME, Some(Role::Operator)),
    }
}

/// What each path needs.
struct Rules {
    by_path: HashMap<String, (Method, Option<Role>)>,
}

impl Rules {
    fn new() -> Self {
        let by_path = Method::ALL.into_iter().map(|method| {
            let (service, role) = rule(method);
            (format!("/{service}/{}", method.name()), (method, role))
        });
        Self { by_path: by_path.collect() }
    }

    fn needs(&self, path: &str) -> (Option<Method>, Needs) {
        match self.by_path.get(path) {
            Some((method, role)) => (Some(*method), role.map_or(Needs::Token, Needs::Role)),
            None if path.starts_with(OPEN) => (None, Needs::Nothing),
            None => (None, Needs::Token),
        }
    }
}

/// Turns away who may not call. Whom it lets in has a [`Grant`](crate::access::Grant) among the request's extensions.
#[derive(Clone)]
pub(super) struct AuthLayer {
    /// `None`: authentication is off, everybody may do everything.
    guard: Option<Arc<Guard>>,
}

struct Guard {
    node: Arc<Node>,
    rules: Rules,
}

impl AuthLayer {
    pub(super) fn new(node: Arc<Node>, on: bool) -> Self {
        Self { guard: on.then(|| Arc::new(Guard { node, rules: Rules::new() })) }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { inner, guard: self.guard.clone() }
    }
}

/// See [`AuthLayer`].
#[derive(Clone)]
pub(super) struct Auth<S> {
    inner: S,
    guard: Option<Arc<Guard>>,
}

impl Guard {
    fn admit<B>(&self, request: &mut Request<B>) -> Result<(), Status> {
        let (method, needs) = self.rules.needs(request.uri().path());
        let denied = match (needs, self.authenticate(request)) {
            (Needs::Nothing, _) => return Ok(()),
            (Needs::Token, Ok(())) => return Ok(()),
            (Needs::Role(role), Ok(())) => {
                let grant = request.extensions().get::<crate::access::Grant>();
                if grant.is_some_and(|grant| grant.0.roles.allow(role)) {
                    return Ok(());
                }
                Denied::Role(role)
            }
            (_, Err(denied)) => denied,
        };
        let status = Status::from(ApiError::Denied(denied));
        if let Some(method) = method {
            self.node.metrics().rpc.begin(method).finish(status.code(), 0);
        }
        tracing::debug!(path = request.uri().path(), why = %denied, "turned away");
        Err(status)
    }

    fn authenticate<B>(&self, request: &mut Request<B>) -> Result<(), Denied> {
        let authorization = request.headers().get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
        let grant = self.node.access().authenticate(authorization, self.node.now_ms())?;
        request.extensions_mut().insert(grant);
        Ok(())
    }
}

impl<S, Body, Answer> Service<Request<Body>> for Auth<S>
where
    S: Service<Request<Body>, Response = Response<Answer>>,
    Answer: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.guard.as_ref().map_or(Ok(()), |guard| guard.admit(&mut request)) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_rpc_of_the_contract_has_a_rule() {
        let files = prost_types::FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).expect("decodes");
        let rules = Rules::new();
        let mut rpcs = 0;
        for file in files.file.iter().filter(|file| file.package() == "andante.v1") {
            for service in &file.service {
                for method in &service.method {
                    rpcs += 1;
                    let path = format!("/andante.v1.{}/{}", service.name(), method.name());
                    assert!(rules.by_path.contains_key(&path), "{path}");
                }
            }
        }
        assert_eq!(rules.by_path.len(), rpcs, "each rule is for an RPC");
    }

    #[test]
    fn what_is_not_in_the_table_needs_a_token_but_health_does_not() {
        let rules = Rules::new();
        let needs = |path: &str| rules.needs(path).1;
        assert_eq!(needs("/andante.v1.ScoreService/Score"), Needs::Role(Role::Score));
        assert_eq!(needs("/andante.v1.ServerService/GetServerInfo"), Needs::Token);
        assert_eq!(needs("/grpc.health.v1.Health/Check"), Needs::Nothing);
        for path in
            ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/andante.v1.ScoreService/score", "/", ""]
        {
            assert_eq!(needs(path), Needs::Token, "{path}");
        }
    }
}
