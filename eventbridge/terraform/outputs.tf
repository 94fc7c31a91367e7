output "queue_url" {
  description = "`queue.url` of the controller."
  value       = aws_sqs_queue.queue.url
}

output "queue_arn" {
  description = "What the controller's role may receive from, delete from and change visibility in."
  value       = aws_sqs_queue.queue.arn
}

output "dead_letter_queue_url" {
  description = "Where to look when its alarm tells."
  value       = aws_sqs_queue.dead.url
}

output "dead_letter_queue_arn" {
  description = "The same as an ARN."
  value       = aws_sqs_queue.dead.arn
}
