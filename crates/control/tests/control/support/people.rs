//! People and teams put straight into the database, and tokens signed as the server signs them: signing in takes a hash
//! that takes its time, and most tests are not about that.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use wrenn_control::admin;
use wrenn_core::{TeamId, UserId};

use super::{JWT_SECRET, PATIENCE, Server, answer};

/// Somebody with a token for a team.
#[derive(Debug, Clone)]
pub struct Person {
    pub id: UserId,
    pub email: String,
    pub team: TeamId,
    pub token: String,
}

/// Signs claims as the server does.
pub fn sign(claims: &Value) -> String {
    let key = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

/// A token that ends this long from now.
pub fn token(user: UserId, team: TeamId, life: Duration) -> String {
    let now = OffsetDateTime::now_utc();
    sign(&json!({
        "sub": user, "team_id": team, "role": "member", "email": "", "name": "",
        "iat": now.unix_timestamp().min((now + life).unix_timestamp()), "exp": (now + life).unix_timestamp(),
    }))
}

impl Person {
    /// The same person with a token for another team.
    pub fn of(&self, team: TeamId) -> Self {
        Self { team, token: token(self.id, team, Duration::HOUR), ..self.clone() }
    }
}

impl Server {
    /// A team of nobody yet.
    pub async fn team(&self, name: &str) -> TeamId {
        admin::create_team_with_key(&self.store, name).await.unwrap().team
    }

    /// Somebody with this role in a team.
    pub async fn person(&self, name: &str, team: TeamId, role: &str) -> Person {
        let id = UserId::random();
        let email = format!("{}-{}@example.com", name.to_lowercase(), &id.uuid().simple().to_string()[..8]);
        self.sql(format!(
            "insert into users (id, email, name, status) values ('{id}', '{email}', '{name}', 'active');
             insert into team_members (team_id, user_id, role) values ('{team}', '{id}', '{role}')",
            id = id.uuid(),
            team = team.uuid(),
        ))
        .await;
        Person { id, email, team, token: token(id, team, Duration::HOUR) }
    }

    /// Somebody who owns a team of their own.
    pub async fn owner(&self, name: &str) -> Person {
        let team = self.team(name).await;
        self.person(name, team, "owner").await
    }

    /// An administrator of the platform, with a team of their own.
    pub async fn administrator(&self) -> Person {
        let person = self.owner("Root").await;
        self.sql(format!("update users set is_admin = true where id = '{}'", person.id.uuid())).await;
        person
    }

    /// A request with a person's token.
    pub fn by(&self, person: &Person, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path)).bearer_auth(&person.token).timeout(PATIENCE)
    }

    pub async fn get_by(&self, person: &Person, path: &str) -> (StatusCode, Value) {
        answer(self.by(person, Method::GET, path)).await
    }

    pub async fn send_by(
        &self,
        person: &Person,
        method: Method,
        path: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        answer(self.by(person, method, path).json(body)).await
    }

    /// An anonymous POST.
    pub async fn open_post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        answer(self.http.post(self.url(path)).json(body).timeout(PATIENCE)).await
    }

    /// The newest entries of a team's audit log, as `resource.action.status` with the actor's type.
    pub async fn deeds(&self, person: &Person) -> Vec<String> {
        let (status, page) = self.get_by(person, "/v1/audit-logs?limit=200").await;
        assert_eq!(status, 200, "{page}");
        deeds(&page)
    }
}

/// The entries of a page in short.
pub fn deeds(page: &Value) -> Vec<String> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or("-").to_owned();
    let short = |entry: &Value| {
        let fields = ["resource_type", "action", "status", "actor_type"].map(|field| text(entry, field));
        fields.join(".")
    };
    page["items"].as_array().unwrap().iter().map(short).collect()
}
