//! `andante access`.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{connect::Common, output::Output, time};
use crate::v1;

/// Say who may use the cluster: access tokens for clients, join tokens for nodes, the cluster's authority and keys.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, list and revoke access tokens.
    Token(Tokens),
    /// Make a token with which a new node may join: `andante node --join ADDR --join-token-file FILE`.
    JoinToken(JoinToken),
    /// Print the certificate of the cluster's authority (PEM), for --ca.
    Ca(Ca),
    /// Begin a rotation of the keys of delivery tokens now. Tokens handed out before stay valid.
    RotateKeys(RotateKeys),
}

#[derive(Debug, clap::Args)]
struct Tokens {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make an access token and print it. It can't be shown again.
    Create(Create),
    /// List all access tokens, without their secrets.
    List(List),
    /// Make an access token invalid.
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// What it is for: lower case letters, digits, `-`, `_`, `.`.
    name: String,
    /// What it allows; may be repeated.
    #[arg(long = "role", value_enum, required = true, value_delimiter = ',')]
    roles: Vec<Role>,
    /// How long it is valid, like 12h or 90d; default: until it is revoked.
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    ttl: Option<u64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Revoke {
    /// Its id, as the list has it.
    id: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct JoinToken {
    /// How long it is valid, like 30m or 1d.
    #[arg(long, value_name = "TIME", value_parser = time::duration, default_value = "1d")]
    ttl: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Ca {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct RotateKeys {
    #[command(flatten)]
    common: Common,
}

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Ask for scores.
    Score,
    /// Report outcomes.
    Outcome,
    /// Create, change, read and watch campaigns.
    Campaign,
    /// Everything.
    Operator,
}

impl Role {
    fn to_wire(self) -> v1::Role {
        match self {
            Role::Score => v1::Role::Score,
            Role::Outcome => v1::Role::Outcome,
            Role::Campaign => v1::Role::Campaign,
            Role::Operator => v1::Role::Operator,
        }
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    id: String,
    name: String,
    roles: Vec<String>,
    created_ms: u64,
    /// 0: never.
    expires_ms: u64,
}

impl From<v1::AccessToken> for Shown {
    fn from(token: v1::AccessToken) -> Self {
        let roles = token.roles().map(|role| role.as_str_name().trim_start_matches("ROLE_").to_lowercase()).collect();
        let v1::AccessToken { id, name, created_ms, expires_ms, .. } = token;
        Shown { id, name, roles, created_ms, expires_ms }
    }
}

#[derive(Debug, Serialize)]
struct Created {
    token: String,
    access_token: Shown,
}

#[derive(Debug, Serialize)]
struct Listed {
    access_tokens: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Revoked {
    revoked: Shown,
}

#[derive(Debug, Serialize)]
struct JoinTokenMade {
    join_token: String,
    expires_ms: u64,
}

#[derive(Debug, Serialize)]
struct Authority {
    certificate_pem: String,
}

#[derive(Debug, Serialize)]
struct Rotation {
    current: u32,
    next: u32,
    mints_from_ms: u64,
}

impl Args {
    fn common(&self) -> &Common {
        match &self.command {
            Command::Token(Tokens { command: TokenCommand::Create(args) }) => &args.common,
            Command::Token(Tokens { command: TokenCommand::List(args) }) => &args.common,
            Command::Token(Tokens { command: TokenCommand::Revoke(args) }) => &args.common,
            Command::JoinToken(args) => &args.common,
            Command::Ca(args) => &args.common,
            Command::RotateKeys(args) => &args.common,
        }
    }

    pub(super) fn json(&self) -> bool {
        self.common().json
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let output = Output::new(args.json());
    let common = args.common().clone();
    let client = common.client()?;
    match args.command {
        Command::Token(Tokens { command: TokenCommand::Create(Create { name, roles, ttl, .. }) }) => {
            let roles = roles.into_iter().map(|role| role.to_wire().into()).collect();
            let request = v1::CreateTokenRequest { name, roles, ttl_ms: ttl.unwrap_or(0) };
            let made = client.create_token(request).await?;
            let access_token = Shown::from(made.access_token.unwrap_or_default());
            let created = Created { token: made.token, access_token };
            // The secret alone, so that a script can catch it.
            output.result(&created, |created| created.token.clone())?;
            output.note(format_args!("keep it: it can't be shown again"));
        }
        Command::Token(Tokens { command: TokenCommand::List(_) }) => {
            let listed = client.list_tokens(v1::ListTokensRequest {}).await?;
            let access_tokens = listed.access_tokens.into_iter().map(Shown::from).collect();
            output.result(&Listed { access_tokens }, table)?;
        }
        Command::Token(Tokens { command: TokenCommand::Revoke(Revoke { id, .. }) }) => {
            let request = v1::RevokeTokenRequest { id };
            let revoked = client.revoke_token(request).await?.access_token.unwrap_or_default();
            output.result(&Revoked { revoked: revoked.into() }, |done| format!("revoked {}", done.revoked.name))?;
        }
        Command::JoinToken(JoinToken { ttl, .. }) => {
            let request = v1::CreateJoinTokenRequest { ttl_ms: ttl };
            let made = client.create_join_token(request).await?;
            let made = JoinTokenMade { join_token: made.join_token, expires_ms: made.expires_ms };
            output.result(&made, |made| made.join_token.clone())?;
            output.note(format_args!("valid until {}", time::show(made.expires_ms)));
        }
        Command::Ca(_) => {
            let request = v1::GetAuthorityRequest {};
            let certificate_pem = client.get_authority(request).await?.certificate_pem;
            output.result(&Authority { certificate_pem }, |ca| ca.certificate_pem.trim_end().to_owned())?;
        }
        Command::RotateKeys(_) => {
            let request = v1::RotateTokenKeysRequest {};
            let v1::RotateTokenKeysResponse { current, next, mints_from_ms } =
                client.rotate_token_keys(request).await?;
            output.result(&Rotation { current, next, mints_from_ms }, |rotation| {
                let Rotation { current, next, mints_from_ms } = rotation;
                format!("key {next} mints from {} on, until then key {current}", time::show(*mints_from_ms))
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(listed: &Listed) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["id", "name", "roles", "created", "expires"]);
    for Shown { id, name, roles, created_ms, expires_ms } in &listed.access_tokens {
        let expires = if *expires_ms == 0 { "never".to_owned() } else { time::show(*expires_ms) };
        table.add_row([id.clone(), name.clone(), roles.join(", "), time::show(*created_ms), expires]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Access {
        #[command(flatten)]
        args: Args,
    }

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Access::try_parse_from(std::iter::once("access").chain(args.iter().copied())).map(|access| access.args)
    }

    #[test]
    fn a_token_needs_a_role() {
        assert!(parse(&["token", "create", "radio"]).is_err());
        let args =
            parse(&["token", "create", "radio", "--role", "score,outcome", "--role", "campaign", "--ttl", "90d"]);
        match args.unwrap().command {
            Command::Token(Tokens { command: TokenCommand::Create(create) }) => {
                assert_eq!(create.roles, [Role::Score, Role::Outcome, Role::Campaign]);
                assert_eq!(create.ttl, Some(90 * 24 * 3_600_000));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_list_shows_what_is_not_secret() {
        let token = v1::AccessToken {
            id: "00000000000000ab".into(),
            name: "radio".into(),
            roles: vec![v1::Role::Score.into(), v1::Role::Outcome.into()],
            created_ms: 0,
            expires_ms: 0,
        };
        let text = table(&Listed { access_tokens: vec![token.into()] });
        assert!(
            text.contains("00000000000000ab") && text.contains("score, outcome") && text.contains("never"),
            "{text}"
        );
    }
}
