//! What both ends say on a fresh connection before HTTP/2 begins: so a node of another cluster, or one that took over
//! an address, is told apart before it is asked or told anything.

use std::io;

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    NodeId,
    env::Io,
    proto::{Hello, HelloAnswer},
};

/// Longest message here.
const MAX_BYTES: usize = 1_024;

/// What usually is the matter when the other end does not understand.
const MAYBE_TLS: &str = "; does one of the two use TLS and the other not?";

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// A node of this cluster; with TLS its certificate says so. `None`: a stranger, who may only join.
    pub node: Option<NodeId>,
}

/// Says who this is, and that `hello.to_node_id` is to answer.
pub(super) async fn greet(io: &mut Box<dyn Io>, hello: &Hello) -> io::Result<()> {
    write(io, &hello.encode_to_vec()).await?;
    let answer = read(io).await.map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(e.kind(), format!("the other end hung up{MAYBE_TLS}")),
        io::ErrorKind::InvalidData => io::Error::new(e.kind(), format!("{e}{MAYBE_TLS}")),
        _ => e,
    })?;
    let answer =
        HelloAnswer::decode(answer).map_err(|e| invalid(format!("the other end speaks another protocol: {e}")))?;
    match answer.refused {
        refused if refused.is_empty() => Ok(()),
        refused => Err(io::Error::new(io::ErrorKind::PermissionDenied, refused)),
    }
}

/// Hears who is at the other end, and refuses whoever does not belong here. `certified`: the node that the
/// connection's certificate names; `secured`: a node has to have one.
pub(super) async fn welcome(
    io: &mut Box<dyn Io>,
    (cluster_id, node_id): ([u8; 16], NodeId),
    secured: bool,
    certified: Option<NodeId>,
) -> io::Result<Caller> {
    let hello = read(io).await.map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => invalid(format!("{e}{MAYBE_TLS}")),
        _ => e,
    })?;
    let hello = Hello::decode(hello).map_err(|e| invalid(format!("not a node's greeting: {e}")))?;
    let judged = judge(&hello, (cluster_id, node_id), secured, certified);
    let refused = judged.clone().err().unwrap_or_default();
    write(io, &HelloAnswer { refused }.encode_to_vec()).await?;
    judged.map_err(|why| io::Error::new(io::ErrorKind::PermissionDenied, why))
}

fn judge(
    hello: &Hello,
    (cluster_id, node_id): ([u8; 16], NodeId),
    secured: bool,
    certified: Option<NodeId>,
) -> Result<Caller, String> {
    if hello.to_node_id != 0 && hello.to_node_id != node_id {
        return Err(format!("this is node {node_id}, not node {}", hello.to_node_id));
    }
    if hello.node_id == 0 {
        return Ok(Caller { node: None });
    }
    if hello.cluster_id.as_ref() != cluster_id {
        return Err(format!("node {node_id} belongs to another cluster"));
    }
    if secured && certified != Some(hello.node_id) {
        let is = certified.map_or_else(|| "missing".to_owned(), |node| format!("node {node}'s"));
        return Err(format!("the certificate of node {} is {is}", hello.node_id));
    }
    Ok(Caller { node: Some(hello.node_id) })
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

async fn write(io: &mut Box<dyn Io>, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| invalid("greeting too long".to_owned()))?;
    io.write_all(&[&length.to_be_bytes(), message].concat()).await?;
    io.flush().await
}

async fn read(io: &mut Box<dyn Io>) -> io::Result<Bytes> {
    let length = usize::from(io.read_u16().await?);
    if length > MAX_BYTES {
        return Err(invalid("the other end speaks another protocol".to_owned()));
    }
    let mut message = vec![0; length];
    io.read_exact(&mut message).await?;
    Ok(message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: [u8; 16] = [7; 16];

    fn hello(cluster_id: [u8; 16], node_id: NodeId, to_node_id: NodeId) -> Hello {
        Hello { cluster_id: Bytes::copy_from_slice(&cluster_id), node_id, to_node_id }
    }

    #[test]
    fn only_a_node_of_this_cluster_that_looks_for_this_one_is_known() {
        let known = |node| Ok(Caller { node });
        for (hello, secured, certified, expected) in [
            (hello(CLUSTER, 2, 1), false, None, known(Some(2))),
            (hello(CLUSTER, 2, 0), false, None, known(Some(2))),
            (hello(CLUSTER, 2, 1), true, Some(2), known(Some(2))),
            (Hello::default(), false, None, known(None)),
            (Hello::default(), true, None, known(None)),
            (hello(CLUSTER, 2, 1), true, Some(3), Err("the certificate of node 2 is node 3's")),
            (hello(CLUSTER, 2, 1), true, None, Err("the certificate of node 2 is missing")),
            (hello([8; 16], 2, 1), false, None, Err("node 1 belongs to another cluster")),
            (hello(CLUSTER, 2, 3), false, None, Err("this is node 1, not node 3")),
        ] {
            let judged = judge(&hello, (CLUSTER, 1), secured, certified);
            assert_eq!(judged, expected.map_err(str::to_owned), "{hello:?}");
        }
    }

    #[tokio::test]
    async fn who_is_refused_is_told_why() {
        let (here, there) = tokio::io::duplex(64);
        let (mut here, mut there): (Box<dyn Io>, Box<dyn Io>) = (Box::new(here), Box::new(there));
        let hello = hello([8; 16], 2, 1);
        let (greeted, welcomed) =
            tokio::join!(greet(&mut here, &hello), welcome(&mut there, (CLUSTER, 1), false, None));
        assert_eq!(greeted.expect_err("refused").to_string(), "node 1 belongs to another cluster");
        assert_eq!(welcomed.expect_err("refused").kind(), io::ErrorKind::PermissionDenied);
    }

    #[tokio::test]
    async fn another_protocol_is_refused() {
        let (here, mut there) = tokio::io::duplex(64);
        let mut here: Box<dyn Io> = Box::new(here);
        there.write_all(b"PRI * HTTP/2.0").await.expect("sent");
        let welcomed = welcome(&mut here, (CLUSTER, 1), false, None).await.expect_err("refused");
        assert_eq!(welcomed.kind(), io::ErrorKind::InvalidData);
        assert!(welcomed.to_string().contains("TLS"), "it says what is usually the matter: {welcomed}");
    }
}
