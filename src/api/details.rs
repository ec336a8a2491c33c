//! Completes what tonic answers by itself (a message too large, an unknown method) with an ErrorInfo.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use tonic::Status;
use tower::{Layer, Service};

use super::error;

/// Holds each answer against the rule that a status has details.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DetailsLayer;

impl<S> Layer<S> for DetailsLayer {
    type Service = Details<S>;

    fn layer(&self, inner: S) -> Details<S> {
        Details(inner)
    }
}

/// See [`DetailsLayer`].
#[derive(Debug, Clone)]
pub(crate) struct Details<S>(S);

impl<S, Req, Body> Service<Req> for Details<S>
where
    S: Service<Req, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            // Only answers without a message carry their status in the headers; others end with a trailer.
            if let Some(bare) = Status::from_header_map(response.headers())
                && bare.code() != tonic::Code::Ok
                && bare.details().is_empty()
            {
                // The text and details are ours and encodable; if not, the bare status stays.
                let _unchanged = error::complete(&bare).add_header(response.headers_mut());
            }
            Ok(response)
        })
    }
}
