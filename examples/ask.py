"""Ask a question, and see which model answered and why."""

from nearfar import Nearfar, Query

with Nearfar.from_config() as nearfar:
    answer = nearfar.answer_sync(Query("What is the capital of Japan?", budget_usd=0.01))

print(answer.text)
print(f"{answer.tier}, score {answer.score:.2f}, ${answer.decision.cost_usd:.2f}")
print("left this machine:", answer.decision.departures or "nothing")
